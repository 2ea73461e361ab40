// Small makers of HTML elements and of numbers as text.

/** An element with attributes and children; keys that begin with "on" are event listeners. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null) element.setAttribute(key, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null));
  return element;
}

/** A number with a true minus sign. */
export const fixed = (x, digits = 3) => {
  const text = x.toFixed(digits);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
};

/** All digits that a float64 has: 16. */
export const exact = (x) => x.toPrecision(16).replace("-", "−");

/** A table; cells are text or elements, the first of each row its heading. */
export function table(caption, titles, rows) {
  return make(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    make(
      "table",
      {},
      make("caption", {}, caption),
      make("thead", {}, make("tr", {}, titles.map((title) => make("th", { scope: "col" }, title)))),
      make(
        "tbody",
        {},
        rows.map(([heading, ...cells]) =>
          make("tr", {}, make("th", { scope: "row" }, heading), cells.map((cell) => make("td", {}, cell))),
        ),
      ),
    ),
  );
}

/** A bar that shows `share` of a limit, which is marked; beyond it, it is another colour and says so. */
export function gauge(label, share, beyond) {
  const shown = Math.min(share / 2, 1) * 100;
  return make(
    "div",
    { class: share > 1 + 1e-9 ? "gauge beyond" : "gauge" },
    make("span", { class: "gauge-label" }, label),
    make(
      "span",
      { class: "track", "aria-hidden": "true" },
      make("span", { class: "filled", style: `width:${shown}%` }),
      make("span", { class: "limit" }),
    ),
    make("span", { class: "gauge-value" }, `${fixed(share * 100, 0)} %${share > 1 + 1e-9 ? `: ${beyond}` : ""}`),
  );
}

/** Two numbers that should be equal, one above the other, with the digits that they share set apart. */
export function compared(a, b) {
  const [one, other] = [exact(a), exact(b)];
  let shared = 0;
  while (shared < one.length && one[shared] === other[shared]) shared++;
  const marked = (text) =>
    make("span", { class: "digits" }, make("span", { class: "agree" }, text.slice(0, shared)), text.slice(shared));
  const difference = a === b ? "0" : Math.abs(a - b).toExponential(0).replace("-", "−");
  return [[marked(one), make("br"), marked(other)], difference];
}

/** The titles of a table of such pairs. */
export const COMPARED = ["", ["nearest plane, from R", make("br"), "GPTQ, from the inverse of H"], "difference"];

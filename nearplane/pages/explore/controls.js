// Settings of the problem, in groups; the story says which groups a step shows.
import { fixed, make } from "./elements.js";
import { METHODS } from "./problem.js";

/** Return { group: element }, and functions that bring all controls to the settings and offer methods. */
export function makeControls(set) {
  const readers = [];
  const slider = (label, [least, most, by], read, write, show = (x) => fixed(x, 2)) => {
    const output = make("output");
    const input = make("input", { type: "range", min: least, max: most, step: by });
    input.addEventListener("input", () => set((state) => write(Number(input.value), state)));
    readers.push((state) => {
      input.value = read(state);
      output.textContent = show(read(state));
      input.setAttribute("aria-valuetext", output.textContent);
    });
    return make("label", { class: "slider" }, make("span", {}, label), input, output);
  };
  const number = (label, read, write) => {
    const input = make("input", { type: "number", step: 0.01 });
    input.addEventListener("change", () => {
      if (Number.isFinite(input.valueAsNumber)) set((state) => write(input.valueAsNumber, state));
    });
    readers.push((state) => {
      if (document.activeElement !== input) input.value = read(state).toFixed(3);
    });
    return make("label", { class: "number" }, make("span", {}, label), input);
  };
  const choice = (label, key, options) => {
    const select = make("select", { "data-key": key }, options.map(([value, text]) => make("option", { value }, text)));
    select.addEventListener("change", () => set({ [key]: options[select.selectedIndex][0] }));
    readers.push((state) => (select.selectedIndex = options.findIndex(([value]) => value === state[key])));
    return make("label", { class: "choice" }, make("span", {}, label), select);
  };
  const tick = (label, key) => {
    const input = make("input", { type: "checkbox" });
    input.addEventListener("change", () => set({ [key]: input.checked }));
    readers.push((state) => (input.checked = state[key]));
    return make("label", { class: "tick" }, input, make("span", {}, label));
  };
  const at = (values, k, x) => values.map((y, j) => (j === k ? x : y));
  const pair = (label, key, range) =>
    [0, 1].map((k) => slider(`${label} ${k + 1}`, range, (s) => s[key][k], (x, s) => ({ [key]: at(s[key], k, x) })));
  const groups = {
    method: ["Cells of", choice("Algorithm", "method", Object.entries(METHODS)), tick("Colour its cells", "cells"), tick("Hatch where it misses the closest dot", "misses")],
    hessian: [
      "Hessian",
      slider("larger eigenvalue", [0.1, 6, 0.01], (s) => s.large, (large, s) => ({ large, small: Math.min(s.small, large) })),
      slider("smaller eigenvalue", [0.03, 6, 0.01], (s) => s.small, (small, s) => ({ small, large: Math.max(s.large, small) })),
      slider("angle of the larger", [-90, 90, 1], (s) => s.angle, (angle) => ({ angle }), (x) => `${fixed(x, 0)}°`),
      slider("damping", [0, 5, 0.01], (s) => s.damping, (damping) => ({ damping })),
    ],
    target: ["Target", ...[0, 1].map((k) => number(`weight ${k + 1}`, (s) => s.weight[k], (x, s) => ({ weight: at(s.weight, k, x) })))],
    order: ["Order", choice("Rounded first", "first", [[0, "column 1"], [1, "column 2"]])],
    limits: [
      "Integers",
      tick("only some integers exist (clipping)", "limited"),
      slider("smallest", [-8, 0, 1], (s) => s.low, (low) => ({ low }), (x) => fixed(x, 0)),
      slider("largest", [0, 7, 1], (s) => s.high, (high) => ({ high }), (x) => fixed(x, 0)),
    ],
    step: ["Steps", ...pair("step of column", "step", [0.2, 3, 0.01])],
    rate: [
      "Code lengths",
      slider("ν, worth of a bit", [0, 0.6, 0.005], (s) => s.slope, (slope) => ({ slope }), (x) => fixed(x, 3)),
      slider("bits more for each integer away from 0", [0, 3, 0.05], (s) => s.fall, (fall) => ({ fall })),
    ],
  };
  const made = Object.fromEntries(
    Object.entries(groups).map(([name, [title, ...rows]]) => [
      name,
      make("fieldset", { class: "group" }, make("legend", {}, title), rows),
    ]),
  );
  /** Offer only some of the algorithms: those that the story has told of. */
  const offer = (methods) => {
    for (const option of made.method.querySelectorAll("[data-key=method] option")) {
      option.hidden = option.disabled = !methods.includes(option.value);
    }
  };
  return { groups: made, offer, show: (state) => readers.forEach((read) => read(state)) };
}

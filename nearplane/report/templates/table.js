"use strict";
// The table of all layers: sorted by a click on a column's title, filtered by name, kind and warnings.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const table = document.getElementById("layers");
  if (!table || !data.layers) return;
  const body = table.tBodies[0];
  const fields = Object.keys(data.layers);
  const layers = data.layers.name.map((_, i) =>
    Object.fromEntries(fields.map((field) => [field, data.layers[field][i]])));
  const error = (x) => (x === null ? "–" : x.toExponential(2).replace("e+", "e"));
  const bits = (x) => (x === null ? "–" : x.toFixed(3));
  const count = (x) => (x === null ? "–" : x.toLocaleString("en-US", { maximumFractionDigits: 0 }));
  const cells = {
    name: (layer) => layer.name, shape: (layer) => `${layer.rows}×${layer.columns}`,
    bpw: (layer) => bits(layer.bpw), stored_bytes: (layer) => count(layer.stored_bytes),
    relative_loss: (layer) => error(layer.relative_loss), damped: (layer) => error(layer.damped),
    expected: (layer) => error(layer.expected), bound: (layer) => error(layer.bound),
    loss_over_bound: (layer) => bits(layer.loss_over_bound),
    predicted: (layer) => error(layer.predicted), tokens: (layer) => count(layer.tokens),
    warning: (layer) => layer.warning,
  };
  const order = new Intl.Collator("en", { numeric: true });
  const sorted = { key: "", falling: false };
  const value = (layer, key) => (key === "shape" ? layer.rows * layer.columns : layer[key]);

  // unknown numbers come last, whichever way the others go
  function before(a, b) {
    const [x, y] = [value(a, sorted.key), value(b, sorted.key)];
    if (x === null || y === null) return (x === null) - (y === null);
    const rising = typeof x === "string" ? order.compare(x, y) : x - y;
    return sorted.falling ? -rising : rising;
  }

  function rowOf(layer) {
    const row = document.createElement("tr");
    row.classList.toggle("warned", layer.warning !== "");
    for (const heading of headings) {
      const key = heading.dataset.key;
      const cell = document.createElement(key === "name" ? "th" : "td");
      if (key === "name") cell.scope = "row";
      if (heading.classList.contains("n")) cell.className = "n";
      cell.textContent = cells[key](layer);
      row.append(cell);
    }
    return row;
  }

  const filter = document.getElementById("filter");
  const kind = document.getElementById("kind");
  const warned = document.getElementById("warned");
  function show() {
    const part = filter.value.toLowerCase();
    const found = layers.filter((layer) => layer.name.toLowerCase().includes(part)
      && (kind.value === "" || layer.kind === kind.value) && (!warned.checked || layer.warning));
    if (sorted.key) found.sort(before);
    body.replaceChildren(...found.slice(0, data.rows).map(rowOf));
    const shown = Math.min(found.length, data.rows);
    document.getElementById("count").textContent = shown < found.length
      ? `${count(shown)} of ${count(found.length)} shown: narrow the filter for others`
      : `${count(found.length)} of ${count(layers.length)} layers`;
  }

  const headings = [...table.tHead.rows[0].cells];
  for (const heading of headings) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const text = ["name", "warning"].includes(heading.dataset.key);
      sorted.falling = sorted.key === heading.dataset.key ? !sorted.falling : !text;
      sorted.key = heading.dataset.key;
      for (const each of headings) each.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", sorted.falling ? "descending" : "ascending");
      show();
    });
  }
  for (const name of [...new Set(data.layers.kind)]) kind.append(new Option(name, name));
  for (const input of [filter, kind, warned]) input.addEventListener("input", show);
  document.querySelector(".filters").hidden = false;
  const cut = document.getElementById("cut");
  if (cut) cut.hidden = true;
  show();
})();

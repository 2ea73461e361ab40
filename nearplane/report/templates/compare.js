"use strict";
// The charts of a page that compares runs, by Observable Plot.
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const PANELS = 24; // kinds of layers that get one
  const MANY = 400; // points of a panel above which each block's median is drawn
  const style = { fontSize: "12px", overflow: "visible" };
  const domain = runs.map((run) => run.name);
  const layers = runs.flatMap((run) => run.layers.name.map((name, i) => ({
    run: run.name, name, kind: run.layers.kind[i], block: run.layers.block[i],
    bpw: run.layers.bpw[i], relative_loss: run.layers.relative_loss[i],
  })));
  const inBlocks = layers.filter((layer) => layer.block !== null);

  function legend() {
    const place = document.createElement("div");
    place.className = "key";
    place.append(Plot.legend({ color: { type: "categorical", domain }, style }));
    return place;
  }

  function panels(field, y, width) {
    const having = inBlocks.filter((layer) => layer[field] !== null && layer[field] > 0);
    if (!having.length) return null;
    const columns = Math.max(Math.floor((width + 16) / 288), 1);
    const values = having.map((layer) => layer[field]);
    const range = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
    const made = [...Map.groupBy(having, (layer) => layer.kind)].slice(0, PANELS).map(([kind, of]) => {
      const figure = document.createElement("figure");
      const heading = document.createElement("div");
      heading.className = "panel-title";
      heading.textContent = kind;
      const title = (layer) => `${layer.run}\n${layer.name}\n${layer.bpw.toFixed(3)} bits\nrelative error ${layer.relative_loss?.toPrecision(4) ?? "–"}`;
      const channels = { x: "block", y: field, fill: "run", r: 2.5 };
      figure.append(heading, Plot.plot({
        style, width: Math.floor((width + 16) / columns) - 16, height: 170, marginLeft: 48, marginBottom: 36,
        color: { type: "categorical", domain },
        x: of.length > MANY ? { type: "point", label: "block", ticks: [] } : { label: "block", ticks: 6, tickFormat: "d" },
        inset: 5,
        y: { ...y, domain: y.type === "log" ? range : [0, range[1]], grid: true, ticks: 4 },
        marks: [of.length > MANY
          ? Plot.dot(of, Plot.groupX({ y: "median" }, { ...channels, z: "run" }))
          : Plot.dot(of, { ...channels, title, tip: true })],
      }));
      return figure;
    });
    return [legend(), ...made];
  }

  const charts = {
    sizes(width) {
      const points = runs.flatMap((run) => [
        ...(run.predicted_kl > 0 ? [{ run: run.name, size: run.tensor_bytes / 1e6, kl: run.predicted_kl, how: "expected" }] : []),
        ...run.measured_kl.filter((kl) => kl > 0).map((kl) => ({ run: run.name, size: run.tensor_bytes / 1e6, kl, how: "measured" })),
      ]);
      if (!points.length) return null;
      const title = (point) => `${point.run}\n${point.size.toPrecision(4)} MB\n${point.how} ${point.kl.toPrecision(3)} nats a token`;
      return [legend(), Plot.plot({
        style, width, height: 280, marginLeft: 55, marginTop: 30, marginBottom: 42, inset: 5, color: { type: "categorical", domain },
        x: { label: "MB →", grid: true, zero: true, ticks: Math.max(width / 120, 3) },
        y: { type: "log", label: "divergence, nats a token ↑", grid: true, nice: true, tickFormat: "~e", ticks: 5 },
        marks: [
          Plot.dot(points.filter((point) => point.how === "expected"), { x: "size", y: "kl", stroke: "run", r: 5, title, tip: true }),
          Plot.dot(points.filter((point) => point.how === "measured"), { x: "size", y: "kl", fill: "run", r: 5, title, tip: true }),
        ],
      })];
    },
    errors: (width) => panels("relative_loss", { type: "log", label: "error ↑", tickFormat: "~e" }, width),
    rates: (width) => panels("bpw", { label: "bits ↑" }, width),
  };

  drawFigures(charts);
})();

"use strict";
// The charts of report.html, by Observable Plot. Each is drawn into the figure chart-NAME, which is
// hidden until then, and drawn anew when the page's width changes.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const MANY = 400; // points of a panel above which blocks are summed up
  const LINES = 60; // most spectra of a panel
  const PANELS = 24; // kinds of layers that get one
  const fields = Object.keys(data.layers);
  const layers = data.layers.name.map((_, i) => ({
    ...Object.fromEntries(fields.map((field) => [field, data.layers[field][i]])),
    pivots: data.pivots[i] ?? [],
  }));
  for (const layer of layers) {
    layer.label = layer.block === null ? layer.name : `${layer.block} ${layer.kind}`;
    layer.weights = layer.rows * layer.columns;
  }
  const inBlocks = layers.filter((layer) => layer.block !== null);
  const outside = layers.filter((layer) => layer.block === null);
  const weightsOf = (kind) => kind.reduce((sum, layer) => sum + layer.weights, 0);
  const panels = [...Map.groupBy(inBlocks, (layer) => layer.kind)]
    .sort((a, b) => weightsOf(b[1]) - weightsOf(a[1])).slice(0, PANELS);

  const percent = (x) => `${Number((100 * x).toPrecision(3))} %`;
  const megabytes = (x) => `${(x / 1e6).toPrecision(4)} MB`;
  const known = (x) => x !== null && x > 0;
  const [UNIT, UNIT_BYTES] = data.tensor_bytes >= 1e10 ? ["GB", 1e9] : data.tensor_bytes >= 1e6 ? ["MB", 1e6] : ["kB", 1e3];
  const style = { fontSize: "12px", overflow: "visible" };
  const log = (label) => ({ type: "log", label, tickFormat: "~e", grid: true });

  function described(layer) {
    const lines = [layer.name, `${layer.bpw.toFixed(3)} bits, ${megabytes(layer.stored_bytes)}`];
    const add = (name, x) => { if (x !== null) lines.push(`${name} ${x.toPrecision(4)}`); };
    add("relative error", layer.relative_loss);
    add("damped", layer.damped);
    add("expected", layer.expected);
    add("bound", layer.bound);
    add("damped / bound", layer.loss_over_bound);
    add("sensitivity", layer.sensitivity);
    add("expected divergence", layer.predicted);
    if (layer.warning) lines.push(layer.warning);
    return lines.join("\n");
  }

  const KINDS = [
    ["bound", "the bound", "var(--bound)"],
    ["expected", "expected, if uniform in its cells", "var(--expected)"],
    ["damped", "measured (damped)", "var(--measured)"],
  ];

  function key(entries) {
    const place = document.createElement("div");
    place.className = "key";
    for (const [, label, color] of entries) {
      const [each, mark] = [document.createElement("span"), document.createElement("i")];
      mark.style.background = color;
      each.append(mark, label);
      place.append(each);
    }
    return place;
  }

  function titled(title, plot) {
    const figure = document.createElement("figure");
    const heading = document.createElement("div");
    heading.className = "panel-title";
    heading.textContent = title;
    figure.append(heading, plot);
    return figure;
  }

  function bars(values, x, label, format, width, fill = "var(--measured)") {
    const longest = (texts) => Math.max(...texts.map((text) => text.length)) * 6.8;
    const marginLeft = Math.min(longest(values.map((each) => each.label)) + 14, width * 0.5);
    const room = Math.floor((marginLeft - 14) / 6.8);
    const end = (name) => (name.length > room + 1 ? `…${name.slice(1 - room)}` : name);
    return Plot.plot({
      style, width, marginLeft, marginRight: longest(values.map((each) => format(each[x]))) + 14,
      height: values.length * 22 + 60, marginBottom: 42,
      x: { label, grid: true, tickFormat: format, ticks: Math.max(width / 160, 2) },
      y: { label: null, domain: values.map((each) => each.label), tickFormat: end },
      marks: [
        Plot.barX(values, { x, y: "label", fill, title: "tip", tip: true }),
        Plot.text(values, { x, y: "label", text: (each) => format(each[x]), dx: 4, textAnchor: "start" }),
      ],
    });
  }

  // marks of one field by block: the points, or median and range where there are too many
  function marksOf(values, field, fill) {
    const some = values.filter((layer) => known(layer[field]));
    if (some.length <= MANY)
      return [Plot.dot(some, { x: "block", y: field, r: 2.5, fill })];
    return [
      Plot.ruleX(some, Plot.groupX({ y1: "min", y2: "max" }, { x: "block", y1: field, y2: field, stroke: fill, strokeOpacity: 0.4 })),
      Plot.dot(some, Plot.groupX({ y: "median" }, { x: "block", y: field, r: 2.5, fill })),
    ];
  }

  // as many panels beside each other as the page's width has room for
  function panelWidth(width) {
    const columns = Math.max(Math.floor((width + 16) / (272 + 16)), 1);
    return Math.floor((width + 16) / columns) - 16;
  }

  function panel(title, values, marks, y, tip, width) {
    const many = values.length > MANY;
    const blocks = [...new Set(values.map((layer) => layer.block))].sort((a, b) => a - b);
    const apart = Math.ceil(blocks.length / 8);
    return titled(title, Plot.plot({
      style, width, height: 170, marginLeft: 48, marginBottom: 36,
      x: many
        ? { type: "point", label: "block", domain: blocks, ticks: blocks.filter((_, i) => i % apart === 0) }
        : { label: "block", ticks: 6, tickFormat: "d", nice: true },
      y: { ...y, ticks: 4 }, inset: 5,
      marks: [...marks, ...(many ? [] : [Plot.tip(values, Plot.pointer({ x: "block", y: tip, title: described }))])],
    }));
  }

  function outsidePanel(marks, y, tip, width) {
    return titled("outside of the blocks", Plot.plot({
      style, width, height: 170, marginLeft: 48, marginBottom: 36,
      x: { label: null, type: "point", tickFormat: (name) => name.split(".").at(-1) },
      y: { ...y, ticks: 4 },
      marks: [...marks, Plot.tip(outside, Plot.pointer({ x: "name", y: tip, title: described }))],
    }));
  }

  const charts = {
    worst(width) {
      const known = layers.filter((layer) => layer.relative_loss !== null)
        .sort((a, b) => b.relative_loss - a.relative_loss).slice(0, 15);
      if (!known.length) return null;
      return bars(known.map((layer) => ({ ...layer, tip: described(layer) })),
        "relative_loss", "relative error →", percent, width);
    },

    hurt(width) {
      const units = [...Map.groupBy(layers.filter((layer) => layer.predicted !== null), unit).values()];
      const all = [...Map.groupBy(units, (of) => of[0].kind)].map(([label, of]) => {
        const predicted = of.reduce((sum, [layer]) => sum + layer.predicted, 0);
        return { label, predicted, tip: `${label}\n${predicted.toPrecision(3)} nats a token, ${percent(predicted / data.predicted_kl)} of all` };
      }).sort((a, b) => b.predicted - a.predicted).slice(0, 15);
      if (!all.length) return null;
      return bars(all, "predicted", "expected divergence, nats a token →", (x) => String(Number(x.toPrecision(3))), width);
    },

    errors(width) {
      const y = log("error ↑");
      const values = KINDS.flatMap(([field]) => layers.map((layer) => layer[field])).filter(known);
      if (!values.length) return null;
      y.domain = [Math.min(...values), Math.max(...values)];
      const made = panels.map(([kind, of]) => panel(kind, of,
        KINDS.flatMap(([field, , color]) => marksOf(of, field, color)), y, "damped", panelWidth(width)));
      if (outside.length) {
        const marks = KINDS.map(([field, , color]) => Plot.dot(outside.filter((layer) => known(layer[field])), { x: "name", y: field, r: 3.5, fill: color }));
        made.push(outsidePanel(marks, y, "damped", panelWidth(width)));
      }
      return [key(KINDS), ...made];
    },

    parts(width) {
      const all = data.parts.map(([label, bytes, compressed]) => ({
        label, size: bytes / UNIT_BYTES, fill: compressed ? "var(--measured)" : "var(--kept)",
        tip: `${label}\n${megabytes(bytes)}, ${percent(bytes / data.tensor_bytes)}\n${compressed ? "compressed" : "stored as it was"}`,
      })).slice(0, 16);
      const legend = [["", "compressed", "var(--measured)"], ["", "stored as it was", "var(--kept)"]];
      return [key(legend), bars(all, "size", `${UNIT} →`, (x) => String(Number(x.toPrecision(4))), width, "fill")];
    },

    rates(width) {
      const y = { label: "bits ↑", grid: true, zero: true, domain: [0, Math.max(...layers.map((layer) => layer.bpw))] };
      const made = panels.map(([kind, of]) => panel(kind, of, marksOf(of, "bpw", "var(--measured)"), y, "bpw", panelWidth(width)));
      if (outside.length) {
        const marks = [Plot.dot(outside, { x: "name", y: "bpw", r: 3.5, fill: "var(--measured)" })];
        made.push(outsidePanel(marks, y, "bpw", panelWidth(width)));
      }
      return made;
    },

    sensitivity(width) {
      const units = Map.groupBy(layers.filter((layer) => known(layer.sensitivity)), unit);
      const all = [...units].map(([label, of]) => ({
        label, kind: of[0].kind, bpw: of.reduce((sum, layer) => sum + layer.bpw * layer.weights, 0) / weightsOf(of),
        each: of[0].sensitivity / weightsOf(of), tip: of.length > 1 ? `${of.length} experts, ${label}` : described(of[0]),
      }));
      if (!all.length) return null;
      return Plot.plot({
        style, width, height: 340, marginLeft: 45, marginBottom: 42,
        x: { ...log("divergence a weight, nats →"), ticks: Math.max(width / 120, 3) },
        y: { label: "bits per weight ↑", grid: true },
        color: { legend: true },
        marks: [Plot.dot(all, { x: "each", y: "bpw", fill: "kind", r: 3.5, title: "tip", tip: true })],
      });
    },

    averages(width) {
      if (data.averages.length < 2) return null;
      const asked = data.asked_bpw ?? data.bpw;
      const size = (bpw) => data.tensor_bytes + (bpw - asked) * data.weights / 8;
      const curve = data.averages.map(([bpw, kl]) => ({
        bpw, kl, tip: `${bpw.toFixed(2)} bits, ${megabytes(size(bpw))}\nexpected ${kl.toPrecision(3)} nats a token` }));
      const here = [{ bpw: asked, kl: data.predicted_kl, text: "this file" }];
      const found = data.measured_kl.filter(known).map((kl) => ({ bpw: asked, kl, tip: `measured: ${kl}` }));
      return [key([["", "expected", "var(--expected)"], ...(found.length ? [["", "measured", "var(--measured)"]] : [])]), Plot.plot({
        style, width, height: 300, marginLeft: 55, marginTop: 30, marginBottom: 42,
        x: { label: "bits per weight →", grid: true }, y: { ...log("divergence, nats a token ↑"), ticks: 5 },
        marks: [
          Plot.lineY(curve, { x: "bpw", y: "kl", stroke: "var(--expected)" }),
          Plot.dot(curve, { x: "bpw", y: "kl", fill: "var(--expected)", title: "tip", tip: true }),
          Plot.dot(here, { x: "bpw", y: "kl", r: 6, stroke: "var(--bound)", strokeWidth: 2 }),
          Plot.text(here, { x: "bpw", y: "kl", text: "text", dx: 10, dy: -10, textAnchor: "start" }),
          Plot.dot(found, { x: "bpw", y: "kl", r: 5, fill: "var(--measured)", title: "tip", tip: true }),
        ],
      })];
    },

    pivots(width) {
      const having = layers.filter((layer) => layer.pivots.length > 1 && !layer.pivots.includes(null));
      if (!having.length) return null;
      const curves = (of) => {
        const apart = Math.ceil(of.length / LINES);
        return of.filter((_, i) => i % apart === 0).flatMap((layer) => {
          const mean = layer.pivots.reduce((a, b) => a + b, 0) / layer.pivots.length;
          return layer.pivots.map((pivot, i) => ({ layer, share: i / (layer.pivots.length - 1), pivot: pivot - mean }));
        });
      };
      const kinds = Map.groupBy(having, (layer) => (layer.block === null ? layer.name : layer.kind));
      const all = [...kinds].map(([kind, of]) => [kind, curves(of)]).slice(0, PANELS);
      const values = all.flatMap(([, points]) => points.map((point) => point.pivot));
      const domain = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
      const blocks = inBlocks.map((layer) => layer.block);
      const range = blocks.length ? [blocks.reduce((a, b) => Math.min(a, b)), blocks.reduce((a, b) => Math.max(a, b))] : [0, 1];
      const color = { type: "linear", domain: range, range: ["#7a8ca8", "#d2762a"], label: "block", tickFormat: "d" };
      const ramp = document.createElement("div");
      ramp.className = "key";
      if (range[1] > range[0]) ramp.append(Plot.legend({ color, style }));
      return [ramp, ...all.map(([kind, points]) => titled(kind, Plot.plot({
        style, width: panelWidth(width), height: 170, marginLeft: 40, marginRight: 24, marginBottom: 36, insetTop: 5, insetBottom: 5,
        x: { label: "share of the columns →", ticks: 5, tickFormat: "%" }, y: { label: "log₂ ↑", grid: true, domain, ticks: 5 },
        color,
        marks: [
          Plot.lineY(points, { x: "share", y: "pivot", z: (point) => point.layer.name, stroke: (point) => point.layer.block ?? range[0], strokeOpacity: 0.75, strokeWidth: 1 }),
          Plot.tip(points, Plot.pointer({ x: "share", y: "pivot", title: (point) => `${point.layer.name}\nlog₂ pivot − mean ${point.pivot.toFixed(2)}\nAM/GM ${point.layer.am_gm_bits?.toFixed(3) ?? "–"} bits` })),
        ],
      })))];
    },

    outliers(width) {
      const field = layers.some((layer) => known(layer.outliers)) ? "outliers" : "largest_code";
      const having = layers.filter((layer) => known(layer[field]));
      if (!having.length) return null;
      const sparse = field === "outliers";
      caption("outliers", sparse
        ? "Outliers: the share of weights stored beside their integer as a 16-bit number."
        : "Outliers: the largest integer of every layer. Nothing is clipped, so a few integers may be far larger than the others.");
      const y = { type: "log", label: sparse ? "share of outliers ↑" : "largest integer ↑", grid: true, ticks: 5, tickFormat: "~s" };
      const some = having.filter((layer) => layer.block !== null);
      const many = some.length > 3 * MANY;
      return Plot.plot({
        style, width, height: 280, marginLeft: 50, marginBottom: 42, color: { legend: true },
        x: { label: "block →", ticks: Math.min(10, width / 50), tickFormat: "d" }, y, inset: 5,
        marks: [
          many ? Plot.dot(some, Plot.groupX({ y: "max" }, { x: "block", y: field, fill: "kind", z: "kind", r: 3 }))
            : Plot.dot(some, { x: "block", y: field, fill: "kind", r: 3, title: described, tip: true }),
          Plot.ruleY(having.filter((layer) => layer.block === null), { y: field, strokeDasharray: "4 3" }),
          Plot.text(having.filter((layer) => layer.block === null), { y: field, text: (layer) => layer.name, frameAnchor: "right", dy: -8, textAnchor: "end", stroke: "var(--ground)", strokeWidth: 6, fill: "currentColor" }),
        ],
      });
    },

    experts(width) {
      if (!data.experts.length) return null;
      const points = data.experts.map(([mixture, expert, tokens]) => ({ mixture, expert, tokens }));
      const names = [...new Set(points.map((point) => point.mixture))];
      const number = new Map(names.map((name, i) => [name, i]));
      const many = points.length > 3 * MANY;
      const x = { type: "point", domain: names.map((_, i) => i), ticks: names.map((_, i) => i).filter((i) => i % Math.ceil(names.length / 12) === 0), label: "mixture →" };
      const place = (point) => number.get(point.mixture);
      const range = Plot.groupX({ y1: "min", y2: "max" }, { x: place, y1: "tokens", y2: "tokens", stroke: "var(--expected)" });
      return Plot.plot({
        style, width, height: 280, marginLeft: 55, x, y: { type: "sqrt", label: "tokens ↑", grid: true, tickFormat: "~s" },
        marks: many ? [
          Plot.ruleX(points, range),
          Plot.dot(points, Plot.groupX({ y: "median" }, { x: place, y: "tokens", fill: "var(--measured)" })),
          Plot.dot(points, Plot.groupX({ y: "min" }, { x: place, y: "tokens", fill: "var(--bound)" })),
        ] : [Plot.dot(points, { x: place, y: "tokens", fill: "var(--measured)", r: 3, tip: true,
          title: (point) => `${point.mixture}\nexpert ${point.expert}: ${point.tokens} tokens` })],
      });
    },
  };

  // the experts of a mixture were probed together
  function unit(layer) {
    return layer.kind.includes("*") ? `${layer.block} ${layer.kind}` : layer.label;
  }

  function caption(name, text) {
    const figure = document.getElementById(`chart-${name}`);
    figure.querySelector("figcaption").textContent = text;
    figure.querySelector(".chart").setAttribute("aria-label", text);
  }

  drawFigures(charts);
  const scripts = document.getElementById("scripts");
  if (scripts) scripts.hidden = true;
  document.documentElement.dataset.drawn = "yes";
})();

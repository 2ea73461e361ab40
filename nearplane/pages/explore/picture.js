// The picture of two columns: dots, cells, lines of nearest plane, projections, box, handles.
import { placeOf, rounded, sidesLeft, weightAt, withVectors } from "./problem.js";
import { handle, Plot, shape } from "./plot.js";

const FARTHEST = 26; // integers drawn in each direction, at most

export class Picture {
  /** `get()` gives what derive() made; `set(changes)` changes settings. */
  constructor(stage, get, set) {
    this.get = get;
    this.plot = new Plot(stage, { unit: 5.6, onResize: () => this.draw() });
    this.shown = new Set(); // of "arrows", "lines", "box", "circle", "target", "others", "clipped"
    this.handles = this.makeHandles(set);
  }

  makeHandles(set) {
    const { plot } = this;
    const dragged = (dragging) => () => {
      plot.dragging = dragging;
      set({}); // all is drawn anew, finer when nothing moves any more
    };
    const [start, end] = [dragged(true), dragged(false)];
    const target = shape("g", { class: "handle target", tabindex: 0, role: "button" });
    target.append(shape("circle", { r: 22, class: "grip" }), shape("circle", { r: 7, class: "mark" }));
    handle(plot, target, {
      ...{ start, end },
      read: () => placeOfWeight(this.get(), this.get().state.weight),
      write: (place) => set({ weight: weightAt(this.get(), place) }),
    });
    const arrows = [0, 1].map((k) => {
      const tip = shape("g", { class: "handle tip", tabindex: 0, role: "button" });
      tip.append(shape("circle", { r: 22, class: "grip" }), shape("circle", { r: 9, class: "ring" }));
      const vectors = () => [0, 1].map((j) => unitVector(this.get(), j));
      const write = (place) => {
        const moved = withVectors(this.get().state, vectors().map((v, j) => (j === k ? place : v)));
        if (moved) set(moved);
      };
      handle(plot, tip, { start, end, write, read: () => vectors()[k] });
      return tip;
    });
    return { target, arrows };
  }

  draw() {
    const found = this.get();
    if (!found || !this.plot.stage.clientWidth) return;
    const { plot } = this;
    const { state } = found;
    plot.measure();
    this.chosen = found.codes[state.method];
    const clipped = this.shown.has("clipped") && state.limited && state.method === "nearest-plane" && !state.misses;
    plot.cells(state.cells ? this.codeAt(found, clipped) : null, this.chosen, clipped ? "clipped" : "miss");
    plot.layer("bounds", this.boundShapes(found));
    plot.layer("planes", this.shown.has("lines") ? this.lineShapes(found) : []);
    plot.layer("dots", this.dotShapes(found));
    plot.layer("scale", plot.scaleBar("length 1: loss 1"));
    plot.layer("vectors", this.vectorShapes(found));
    plot.layer("answers", this.answerShapes(found));
    this.placeHandles(found);
  }

  /** The integers of a place; with `clipped`, also whether its target leaves the box, and where. */
  codeAt(found, clipped) {
    const { state } = found;
    return (x, y) => {
      const weight = weightAt(found, [x, y]);
      const code = rounded(found, state.method, weight);
      if (clipped) {
        const [first, second] = sidesLeft(found, weight); // each part of a cell is convex
        return [...code, first !== 0 || second !== 0, first * 3 + second];
      }
      if (!state.misses) return code;
      const best = rounded(found, "closest", weight);
      const missed = best[0] !== code[0] || best[1] !== code[1];
      // cells of both are told apart, so that what they share is convex
      return [...code, missed, best[0] * 1000 + best[1]];
    };
  }

  dotShapes(found) {
    const { plot } = this;
    const { state } = found;
    const middle = weightAt(found, plot.centre).map((w, k) => Math.round(w / state.step[k]));
    const spread = [0, 1].map((k) => {
      const row = Math.sqrt(found.inverse[k][k]) / state.step[k]; // integers a unit of length
      return Math.min(FARTHEST, Math.ceil(plot.reach * row));
    });
    const apart = Math.min(...[[1, 0], [0, 1], [1, 1], [1, -1]].map((z) => Math.hypot(...placeOf(found, z))));
    const made = [];
    for (let a = middle[0] - spread[0]; a <= middle[0] + spread[0]; a++) {
      for (let b = middle[1] - spread[1]; b <= middle[1] + spread[1]; b++) {
        const place = placeOf(found, [a, b]);
        if (!plot.shows(place)) continue;
        const allowed = !state.limited || [a, b].every((z) => z >= state.low && z <= state.high);
        made.push(plot.dot(place, allowed ? 4 : 3.5, allowed ? "dot" : "dot refused"));
        if (apart * plot.scale > 46) made.push(plot.words(place, said([a, b]), "label", [0, 17]));
      }
    }
    return made;
  }

  vectorShapes(found) {
    if (!this.shown.has("arrows")) return [];
    const { plot } = this;
    const made = [0, 1].map((k) => plot.arrow([0, 0], unitVector(found, k), `basis basis-${k}`));
    [0, 1].forEach((k) => {
      const place = unitVector(found, k);
      made.push(plot.words(place, `column ${k + 1}`, "name", away(place, 27)));
    });
    if (found.state.method === "reduced") {
      [0, 1].forEach((k) => {
        const place = transformed(found, k);
        made.push(plot.arrow([0, 0], place, "basis reduced"));
        made.push(plot.words(place, `reduced ${k + 1}`, "name", away(place, 42)));
      });
    }
    return made;
  }

  /** The box around the chosen dot, whose sides nearest plane's residual keeps to, and its circle. */
  boundShapes(found) {
    const { plot } = this;
    const { state, own, bound } = found;
    const dot = placeOf(found, this.chosen);
    const made = [];
    if (this.shown.has("circle")) made.push(plot.circle(dot, Math.sqrt(bound), "circle"));
    if (this.shown.has("box")) {
      const sides = own.factor.map((row, j) => row[j] * own.step[j]);
      const out = found.trace.some(({ j, residual }) => Math.abs(residual) > sides[j] / 2 + 1e-9);
      made.push(plot.polygon(corners(dot, own, sides), out ? "box left" : "box"));
      if (state.method === "rate") made.push(plot.polygon(corners(dot, own, found.sides), "box wide"));
    }
    return made;
  }

  /** The lines of the column that is rounded first, and the two projections, as far as `stage`. */
  lineShapes(found) {
    const { plot } = this;
    const { state, own, trace } = found;
    const [along, across] = [0, 1].map((k) => own.rotation.map((row) => row[k]));
    const [first, second] = trace;
    const distance = own.factor[1][1] * own.step[1];
    const made = [];
    const far = 2 * plot.reach + 2 * Math.hypot(...plot.centre);
    const [low, high] = state.limited && state.method !== "rate" ? [state.low, state.high] : [-200, 200];
    const reach = Math.ceil(far / Math.abs(distance));
    for (let z = -Math.min(reach, 60); z <= Math.min(reach, 60); z++) {
      const on = across.map((x) => x * z * distance);
      const ends = [-far, far].map((t) => on.map((x, k) => x + t * along[k]));
      const allowed = z >= low && z <= high;
      const kind = state.stage > 0 && z === first.integer ? "plane near" : allowed ? "plane" : "plane refused";
      made.push(plot.line(...ends, kind));
    }
    const target = placeOfWeight(found, state.weight);
    const foot = target.map((x, k) => x - first.residual * across[k]);
    if (state.stage > 0) {
      made.push(plot.line(target, foot, "project"), plot.dot(foot, 4, "foot"));
      made.push(rightAngle(plot, foot, along, across.map((x) => x * Math.sign(first.residual))));
    }
    if (state.stage > 1) {
      made.push(plot.line(foot, foot.map((x, k) => x - second.residual * along[k]), "project second"));
    }
    return made;
  }

  answerShapes(found) {
    const { plot } = this;
    const { state, codes } = found;
    const target = placeOfWeight(found, state.weight);
    const place = placeOf(found, this.chosen);
    const made = [];
    if (state.stage > 1) made.push(plot.line(target, place, "error"), plot.dot(place, 9, "chosen"));
    if (this.shown.has("others")) {
      const others = { closest: "closest", nearest: "round to nearest", "nearest-plane": "nearest plane" };
      const byDot = new Map();
      for (const [method, name] of Object.entries(others)) {
        const key = String(codes[method]);
        byDot.set(key, [...(byDot.get(key) ?? []), name]);
      }
      for (const [key, names] of byDot) {
        const other = placeOf(found, key.split(",").map(Number));
        made.push(plot.dot(other, 12, "other"));
        names.forEach((name, k) => made.push(plot.words(other, name, "name", [0, -16 - 15 * k])));
      }
    }
    return made;
  }

  placeHandles(found) {
    const { plot, handles } = this;
    if (!plot.layers.handles) plot.layer("handles", [...handles.arrows, handles.target]);
    const move = (element, place) => {
      const [x, y] = plot.at(place);
      element.setAttribute("transform", `translate(${clamp(x, plot.width)} ${clamp(y, plot.height)})`);
    };
    move(handles.target, placeOfWeight(found, found.state.weight));
    handles.target.setAttribute(
      "aria-label",
      `target, weights ${found.state.weight.map((w) => w.toFixed(2)).join(" and ")}: arrow keys move it`,
    );
    handles.arrows.forEach((tip, k) => {
      tip.style.display = this.shown.has("arrows") ? "" : "none";
      move(tip, unitVector(found, k));
      tip.setAttribute("aria-label", `arrow of column ${k + 1}: arrow keys move its tip`);
    });
  }
}

export const said = (code) => `${code.map((z) => String(z).replace("-", "−")).join(", ")}`;
export const placeOfWeight = (found, weight) =>
  placeOf(found, weight.map((w, k) => w / found.state.step[k]));
const unitVector = (found, k) => placeOf(found, [0, 1].map((j) => Number(j === k)));

/** A vector of the reduced basis, in the picture. */
function transformed(found, k) {
  const inFactor = found.transform.map((row) => row[k]);
  return placeOf(found, found.own.places.map((place) => inFactor[place]));
}

/** Keep a handle in sight: 12 pixels from the edge. */
const clamp = (x, most) => Math.min(most - 12, Math.max(12, x));

/** Pixels by which a name lies beyond the tip of an arrow. */
function away([x, y], far) {
  const length = Math.hypot(x, y) || 1;
  return [(x / length) * far * 1.6, (-y / length) * far + 4];
}

function corners(centre, { rotation }, sides) {
  const [along, across] = [0, 1].map((k) => rotation.map((row) => (row[k] * sides[k]) / 2));
  return [[1, 1], [1, -1], [-1, -1], [-1, 1]].map(([a, b]) =>
    centre.map((x, k) => x + a * along[k] + b * across[k]),
  );
}

function rightAngle(plot, foot, along, across) {
  const size = 9 / plot.scale;
  const points = [[size, 0], [size, size], [0, size]].map(([a, b]) =>
    plot.at(foot.map((x, k) => x + a * along[k] + b * across[k])).join(","),
  );
  return shape("polyline", { points: points.join(" "), class: "right-angle" });
}

// A picture of the plane: a canvas for cells under an SVG for all that has an edge, a name or a handle.
import { drawCells } from "./cells.js";

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element. */
export function shape(name, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  return element;
}

export const colourNamed = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export class Plot {
  constructor(stage, { unit, centre = [0, 0], onResize }) {
    this.stage = stage;
    this.canvas = stage.querySelector("canvas");
    this.svg = stage.querySelector("svg");
    this.unit = unit; // how many units of length a square picture is wide
    this.centre = centre;
    this.layers = {};
    this.dragging = false;
    new ResizeObserver(() => onResize()).observe(stage);
  }

  /** Take the size of the page into account; call before drawing. */
  measure() {
    this.width = Math.max(this.stage.clientWidth, 50);
    this.height = Math.max(this.stage.clientHeight, 50);
    this.scale = Math.sqrt(this.width * this.height) / this.unit; // pixels a unit
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
  }

  /** Pixels of a place; y goes up. */
  at([x, y]) {
    return [
      this.width / 2 + (x - this.centre[0]) * this.scale,
      this.height / 2 - (y - this.centre[1]) * this.scale,
    ];
  }

  placeAt(px, py) {
    return [
      (px - this.width / 2) / this.scale + this.centre[0],
      (this.height / 2 - py) / this.scale + this.centre[1],
    ];
  }

  /** The place under a pointer. */
  placeOfEvent(event) {
    const box = this.svg.getBoundingClientRect();
    return this.placeAt(event.clientX - box.left, event.clientY - box.top);
  }

  /** How far the corners of the picture are from its centre. */
  get reach() {
    return Math.hypot(this.width, this.height) / 2 / this.scale;
  }

  /** Colour the cells; `hatch` names the colour of places whose code says so. */
  cells(codeAt, chosen, hatch = "miss") {
    const density = this.dragging ? 0.5 : Math.min(window.devicePixelRatio || 1, 2);
    const [width, height] = [this.width, this.height].map((x) => Math.round(x * density));
    Object.assign(this.canvas, { width, height });
    if (!codeAt) return;
    const names = [0, 1, 2, 3].map((k) => `cell-${k}`).concat([0, 1, 2, 3].map((k) => `own-${k}`));
    const palette = [...names, hatch].map(colourNamed);
    const placeOfPixel = (i, j) => this.placeAt(i / density, j / density);
    drawCells(this.canvas, { placeOfPixel }, codeAt, { palette, chosen, finest: 1 });
  }

  /** Replace all that is drawn in one layer; layers lie upon each other as they were first named. */
  layer(name, elements) {
    if (!this.layers[name]) {
      this.layers[name] = shape("g", { class: name });
      this.svg.append(this.layers[name]);
    }
    this.layers[name].replaceChildren(...elements);
  }

  line(from, to, kind) {
    const [[x1, y1], [x2, y2]] = [this.at(from), this.at(to)];
    return shape("line", { x1, y1, x2, y2, class: kind });
  }

  polygon(corners, kind) {
    return shape("polygon", { points: corners.map((c) => this.at(c).join(",")).join(" "), class: kind });
  }

  circle(centre, radius, kind) {
    const [cx, cy] = this.at(centre);
    return shape("circle", { cx, cy, r: radius * this.scale, class: kind });
  }

  dot(place, r, kind) {
    const [cx, cy] = this.at(place);
    return shape("circle", { cx, cy, r, class: kind });
  }

  words(place, text, kind, [dx, dy] = [0, 0], anchor = "middle") {
    const [x, y] = this.at(place);
    return shape("text", { x: x + dx, y: y + dy, class: kind, "text-anchor": anchor }, text);
  }

  /** An arrow, with its head in pixels. */
  arrow(from, to, kind) {
    const [[x1, y1], [x2, y2]] = [this.at(from), this.at(to)];
    const length = Math.hypot(x2 - x1, y2 - y1) || 1;
    const [ux, uy] = [(x2 - x1) / length, (y2 - y1) / length];
    const [bx, by] = [x2 - 11 * ux, y2 - 11 * uy];
    const head = `${x2},${y2} ${bx - 5 * uy},${by + 5 * ux} ${bx + 5 * uy},${by - 5 * ux}`;
    const made = shape("g", { class: kind });
    made.append(shape("line", { x1, y1, x2: bx, y2: by }), shape("polygon", { points: head }));
    return made;
  }

  /** A bar of length 1 in the lower left corner, and what that length means. */
  scaleBar(meaning) {
    const [left, low] = [16, this.height - 14];
    const right = left + this.scale;
    const path = `M${left} ${low - 5}V${low + 5}M${left} ${low}H${right}M${right} ${low - 5}V${low + 5}`;
    const ground = { x: left - 9, y: low - 26, width: Math.max(this.scale, 7.6 * meaning.length) + 18, height: 36, rx: 4 };
    return [shape("rect", { ...ground, class: "scale-ground" }), shape("path", { d: path, class: "scale-bar" }),
      shape("text", { x: left, y: low - 10, class: "name" }, meaning)];
  }

  /** Whether a place is in the picture, or at most `margin` pixels beside it. */
  shows(place, margin = 10) {
    const [x, y] = this.at(place);
    return x > -margin && y > -margin && x < this.width + margin && y < this.height + margin;
  }
}

/**
 * A handle that is dragged, or moved with arrow keys (with Shift, tenfold).
 * `read()` gives its place; `write(place)` moves it.
 */
export function handle(plot, element, { read, write, start, end }) {
  element.addEventListener("pointerdown", (event) => {
    element.setPointerCapture(event.pointerId);
    event.preventDefault();
    element.focus();
    const grabbed = plot.placeOfEvent(event);
    const offset = read().map((x, k) => x - grabbed[k]);
    const move = (moved) => write(plot.placeOfEvent(moved).map((x, k) => x + offset[k]));
    const stop = () => {
      element.removeEventListener("pointermove", move);
      end();
    };
    start();
    element.addEventListener("pointermove", move);
    element.addEventListener("pointerup", stop, { once: true });
    element.addEventListener("pointercancel", stop, { once: true });
  });
  const keys = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  element.addEventListener("keydown", (event) => {
    const way = keys[event.key];
    if (!way) return;
    event.preventDefault();
    const far = event.shiftKey ? 0.2 : 0.02;
    write(read().map((x, k) => x + way[k] * far));
  });
}

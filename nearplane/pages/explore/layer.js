// Sections of a real layer's lattice: all integers of a row but two are held as they are stored.
import { fixed, make, table } from "./elements.js";
import { basis, closest, fromFactor, loss, nearestPlane, toFactor } from "./lattice.js";
import { cholesky, matvec, transpose } from "./matrices.js";
import { said } from "./picture.js";
import { Plot } from "./plot.js";
import { placeOf, weightAt } from "./problem.js";

const CELLS = { plane: "nearest plane, of these two columns", closest: "the closest dot", none: "no cells" };
const AROUND = 14; // integers drawn to either side

let view = null;

/** Show the view; it is built when it is first asked for. */
export function showLayer(place, data) {
  if (!view) view = new LayerView(place, data);
  view.draw();
}

class LayerView {
  constructor(place, data) {
    this.data = data;
    this.cells = "plane";
    this.stage = make("div", { class: "stage" }, make("canvas", { "aria-hidden": "true" }));
    this.stage.append(document.createElementNS("http://www.w3.org/2000/svg", "svg"));
    this.stage.lastChild.setAttribute("role", "img");
    this.said = make("p", { "aria-live": "polite" });
    this.numbers = make("section", { class: "numbers", "aria-label": "Numbers" });
    place.append(
      make("section", { class: "story" }, make("h2", { tabindex: -1 }, `${data.name}, row ${data.row}`), story(data)),
      make("figure", { class: "picture" }, this.stage, make("figcaption", {}, this.said), legend()),
      this.controls(),
      this.numbers,
    );
    this.plot = new Plot(this.stage, { unit: 7, onResize: () => this.draw() });
    this.choose(0);
  }

  controls() {
    const choice = (label, options, chosen) => {
      const select = make("select", {}, options.map((text) => make("option", {}, text)));
      select.addEventListener("change", () => {
        chosen(select.selectedIndex);
        this.draw();
      });
      return make("label", { class: "choice" }, make("span", {}, label), select);
    };
    const group = (title, ...rows) => make("fieldset", { class: "group" }, make("legend", {}, title), rows);
    return make(
      "section",
      { class: "controls", "aria-label": "Settings" },
      group("Section", choice("Pair of columns", this.data.sections.map(({ title }) => title), (k) => this.choose(k))),
      group("Cells of", choice("Algorithm", Object.values(CELLS), (k) => (this.cells = Object.keys(CELLS)[k]))),
    );
  }

  /** Take one of the sections; its first column is the factor's first, which is rounded last. */
  choose(number) {
    const section = this.data.sections[number];
    const made = basis(section.hessian, [1, 0], 0);
    const area = made.factor[0][0] * made.factor[1][1] * Math.abs(section.step[0] * section.step[1]);
    // drawn so that one dot has an area of 1
    const root = transpose(cholesky(section.hessian)).map((row) => row.map((x) => x / Math.sqrt(area)));
    this.found = { state: { step: section.step }, root, section, made, area };
    const aim = toFactor(section.target, made);
    const steps = toFactor(section.step, made);
    const limits = this.data.limits;
    const back = (code) => fromFactor(code, made);
    this.codes = {
      stored: section.code,
      plane: back(nearestPlane(aim, made.factor, steps, ...limits).code),
      closest: back(closest(aim, made.factor, steps, ...limits)),
    };
    this.plotCentre = this.place(section.target);
  }

  place(weight) {
    return placeOf(this.found, weight.map((w, k) => w / this.found.state.step[k]));
  }

  draw() {
    if (!this.stage.clientWidth) return;
    const { plot, found, codes, data } = this;
    const { section, made } = found;
    plot.centre = this.plotCentre;
    plot.measure();
    plot.cells(this.cells === "none" ? null : this.codeAt(), codes[this.cells]);
    plot.layer("bounds", section.box.length ? [plot.polygon(section.box.map((w) => this.place(w)), "box")] : []);
    plot.layer("dots", this.dots());
    plot.layer("scale", plot.scaleBar(`length 1: loss ${found.area.toExponential(1)}`));
    const target = this.place(section.target);
    const chosen = placeOf(found, codes.stored);
    const others = ["plane", "closest"].filter((name) => said(codes[name]) !== said(codes.stored));
    plot.layer("answers", [
      plot.line(target, chosen, "error"),
      plot.dot(chosen, 9, "chosen"),
      plot.words(chosen, "stored", "name", [0, -14]),
      ...others.map((name) => plot.dot(placeOf(found, codes[name]), 12, "other")),
      plot.dot(target, 7, "target-mark"),
    ]);
    const value = (code) => loss(section.target, code, section.step, section.hessian);
    const rows = Object.entries({ stored: "stored", plane: "nearest plane, of these two", closest: "closest" });
    const sentence = `Columns ${section.pair.join(" and ")}: target (${section.target.map((w, k) => fixed(w / section.step[k], 2)).join(", ")}) in steps, stored integers (${said(codes.stored)}).`;
    this.said.textContent = sentence;
    plot.svg.setAttribute("aria-label", sentence);
    this.numbers.replaceChildren(
      table("This section, in steps", ["", ...section.pair.map((c) => `column ${c}`)], [
        ["weight", ...section.weight.map((w, k) => fixed(w / section.step[k], 3))],
        ["target: weight + pull of the other errors", ...section.target.map((w, k) => fixed(w / section.step[k], 3))],
        ["step", ...section.step.map((s) => fixed(s, 5))],
      ]),
      table("Integers, all others held", ["", "integers", "loss added"], rows.map(([name, text]) => [text, said(codes[name]), value(codes[name]).toExponential(3)])),
      table("The whole row", ["", "damped loss"], [
        ["stored integers", data.damped_loss.toExponential(3)],
        ["nearest plane for these inputs", data.plane_loss.toExponential(3)],
        ["bound ¼ Σ R² step²", data.bound.toExponential(3)],
      ]),
    );
    if (!section.box.length) this.numbers.prepend(make("p", { class: "warning" }, "No box: in other columns that depend on these two, the row is outside of its sides, whatever these two weights were."));
  }

  codeAt() {
    const { found, data } = this;
    const { made } = found;
    const steps = toFactor(found.state.step, made);
    return (x, y) => {
      const target = toFactor(weightAt(found, [x, y]), made);
      const code =
        this.cells === "closest"
          ? closest(target, made.factor, steps, ...data.limits)
          : nearestPlane(target, made.factor, steps, ...data.limits).code;
      return fromFactor(code, made);
    };
  }

  dots() {
    const { plot, found, data } = this;
    const [low, high] = data.limits;
    const middle = found.section.target.map((w, k) => Math.round(w / found.state.step[k]));
    const made = [];
    for (let a = middle[0] - AROUND; a <= middle[0] + AROUND; a++) {
      for (let b = middle[1] - AROUND; b <= middle[1] + AROUND; b++) {
        const place = placeOf(found, [a, b]);
        if (!plot.shows(place)) continue;
        const allowed = low === null || [a, b].every((z) => z >= low && z <= high);
        made.push(plot.dot(place, 4, allowed ? "dot" : "dot refused"), plot.words(place, said([a, b]), "label", [0, 17]));
      }
    }
    return made;
  }
}

/** What is shown, and what it is from. */
function story(data) {
  const damping = `${fixed(data.damping * 100, data.damping < 0.01 ? 1 : 0)} %`;
  const share = data.layer_bound ? ` For the whole layer, its certificate states a damped loss of ${data.layer_loss.toPrecision(4)} and a bound of ${data.layer_bound.toPrecision(4)}.` : "";
  const outside = data.sections[0].outside;
  return [
    make("p", {}, `One row of this layer is a target in ${data.columns} dimensions. This is the plane through its stored integers in which two of them vary and all others are held: a two-dimensional lattice, and a target that the errors of the others have pulled to where these two should make up for them.`),
    make("p", {}, `The Hessian is not in the checkpoint. It was made for this page from ${data.tokens.toLocaleString("en")} tokens of ${data.text}, as they reach the layer in ${data.checkpoint} itself, and damped by ${damping}, as the layer’s was: another text than that of calibration gives other numbers. The weights are those of ${data.model}.`),
    make("p", {}, `Of the row’s ${data.columns} integers, ${data.same} are what nearest plane (order: ${data.order}) gives here; in ${outside} columns the row is outside of its box. ${reason(data)}${share}`),
    data.void ? make("p", { class: "warning" }, `No bound for this layer: ${data.void}.`) : null,
    make("p", { class: "try" }, make("b", {}, "Try: "), "another pair of columns. For the two rounded last, the box is a rectangle, as in the story; for others it is the cut of a box of many dimensions."),
  ];
}

/** Why stored integers need not be those of nearest plane. */
function reason({ method, limits }) {
  if (method === "eclq") return "ECLQ weighs code lengths and other rows’ errors, and aims at targets that make up for changed inputs.";
  if (method === "rtn" || method === "hrtn") return "This method rounds every weight by itself.";
  return limits[0] === null ? "It was rounded for the inputs of its calibration." : `Its integers are clipped to ${limits[0]} … ${limits[1]}, and it was rounded for the inputs of its calibration.`;
}

function legend() {
  const marks = [["target", "target"], ["chosen", "stored integers"], ["box", "box around them: R · step"]];
  return make("p", { class: "legend" }, marks.map(([kind, text]) => make("span", { class: `mark-${kind}` }, make("i", { "aria-hidden": "true" }), text)));
}

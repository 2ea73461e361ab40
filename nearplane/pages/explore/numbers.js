// The numbers beside the picture: what every algorithm gives, step by step, the bound, the orders.
import { COMPARED, compared, exact, fixed, gauge, make, table } from "./elements.js";
import { remainingWeights } from "./lattice.js";
import { clippedColumns, clippedInRange, METHODS, survey } from "./problem.js";
import { said } from "./picture.js";

const column = (k) => `column ${k + 1}`;

/** What the algorithms that were told of make of this target. */
export function answers({ codes, losses, bits, state }, dragging, methods) {
  const priced = state.method === "rate";
  const rows = methods.map((method) => [
    METHODS[method] + (state.limited && ["reduced", "rate"].includes(method) ? " (no limits)" : ""),
    said(codes[method]),
    fixed(losses[method], 4),
    fixed(losses[method] / losses.closest, 2),
    ...(priced ? [fixed(bits[method], 2)] : []),
  ]);
  return table(
    "This target, rounded",
    ["", "integers", "loss", "÷ least loss", ...(priced ? ["bits"] : [])],
    rows.map((row, k) => (methods[k] === state.method ? [make("strong", {}, row[0]), ...row.slice(1)] : row)),
  );
}

let surveyed = { of: "", found: [] };

/** How often a method misses the closest dot, over all targets; not anew while something is dragged. */
export function misses(found, dragging, known) {
  const methods = known.filter((name) => name !== "closest");
  const { weight, method, stage, cells, misses, ...rest } = found.state;
  const of = JSON.stringify([rest, methods]);
  if (of !== surveyed.of && !(dragging && surveyed.of)) surveyed = { of, found: survey(found, methods) };
  const rows = surveyed.found.map(({ missed, ratio }, k) => [
    METHODS[methods[k]],
    `${fixed(missed * 100, 1)} %`,
    fixed(ratio, 3),
  ]);
  return table("All targets (a grid of 1,600 in one cell)", ["", "misses the closest dot", "mean loss ÷ least"], rows);
}

/** Nearest plane and GPTQ, number by number. */
export function steps(found) {
  const { trace, update, own, state } = found;
  const rows = [];
  trace.forEach((plane, k) => {
    const gptq = update.trace[k];
    const name = column(gptq.column);
    rows.push([`${k + 1}. best value of ${name}, in steps`, ...compared(plane.best, gptq.best)]);
    const integers = [said([plane.integer]), make("br"), said([gptq.integer])];
    rows.push([`rounded${state.limited ? " and clipped" : ""}`, integers, plane.integer === gptq.integer ? "0" : "differ"]);
    const left = remainingWeights(own.factor, plane.projected);
    // GPTQ lists what is left in the order of rounding, the factor's columns in the reverse
    [...left].reverse().forEach((weight, at) => {
      const next = column(own.order[k + 1 + at]);
      rows.push([`then weight of ${next}`, ...compared(weight, gptq.remaining[at])]);
    });
  });
  return make(
    "div",
    {},
    table("Step by step", COMPARED, rows),
    matricesOf(found),
  );
}

/** The matrices that both work with. */
function matricesOf({ own, damped, update }) {
  const show = (matrix) => matrix.map((row) => row.map((x) => fixed(x, 4).padStart(8)).join("")).join("\n");
  const first = own.order.map((c) => c + 1).join(", ");
  return make(
    "details",
    {},
    make("summary", {}, "The matrices"),
    make("p", {}, "H, damped:"),
    make("pre", {}, show(damped)),
    make("p", {}, `R, with RᵀR = H on columns ${own.columns.map((c) => c + 1).join(", ")}: the last one is rounded first.`),
    make("pre", {}, show(own.factor)),
    make("p", {}, `GPTQ rounds columns ${first}. What it adds to the second weight is its error times L₂₁ = ${exact(update.trace[0].update[0])}, of the Cholesky factor of H⁻¹. Nearest plane never inverts H: it divides by R, and −R₁₂ / R₁₁ has the same digits:`),
    make("p", {}, make("span", { class: "digits" }, exact(-own.factor[0][1] / own.factor[0][0]))),
  );
}

/** The bound, and what keeps to it or does not. */
export function bounds(found) {
  const { own, bound, losses, state, trace, sides } = found;
  const shown = state.method === "rate" ? "rate" : "nearest-plane";
  const half = (j) => Math.abs(own.factor[j][j] * own.step[j]) / 2;
  const gauges = trace.map(({ j, residual }, k) =>
    gauge(`${column(own.columns[j])}, rounded ${k ? "last" : "first"}: target to ${k ? "dot" : "line"}`, Math.abs(residual) / half(j), "out of the box"),
  );
  const rows = trace.map(({ j, residual }) => [
    column(own.columns[j]),
    fixed(Math.abs(residual), 4),
    fixed(half(j), 4),
    fixed(residual ** 2, 4),
    fixed(half(j) ** 2, 4),
  ]);
  rows.push(["together", "", "", fixed(losses[shown], 4), fixed(bound, 4)]);
  const made = [
    make("h3", {}, "How far, in percent of the most that there can be without limits"),
    ...gauges,
    gauge("loss: squares of both, together", losses[shown] / bound, "above the bound"),
    table(`Loss of nearest plane, and its bound${state.limited ? " without limits" : ""}`, ["", "distance", "at most", "squared", "at most"], rows),
  ];
  if (state.method === "rate") {
    const wide = sides.reduce((sum, side) => sum + side ** 2, 0) / 4;
    made.push(make("p", {}, `Integers that weigh code length may lie farther: the wider box bounds the loss by ${fixed(wide, 4)}.`));
  }
  if (state.limited && shown === "nearest-plane") made.push(...clipping(found));
  return make("div", {}, made);
}

/** Whether this target is clipped, and how many are. */
function clipping(found) {
  const { state, codes } = found;
  const integers = `${said([state.low])} … ${state.high}`;
  const clipped = clippedColumns(found);
  const wanted = clipped.map(({ column: c, wanted: z, integer }) => `${said([z])} for ${column(c)} and gets ${said([integer])}`).join(", ");
  const share = fixed(clippedInRange(found) * 100, 0);
  return [
    make("p", { class: clipped.length ? "warning" : "" }, clipped.length
      ? `This target is clipped: of ${integers}, nearest plane wants ${wanted}. The target is outside of the box around (${said(codes["nearest-plane"])}), and no formula said beforehand how far.`
      : `This target is not clipped: with ${integers}, nearest plane gets the integers that it wants. Nothing promises that for the next row, so there is no bound before rounding.`),
    make("p", {}, `Of targets with both weights between ${fixed(state.low - 0.5, 1)} and ${fixed(state.high + 0.5, 1)} steps, each of which rounds to an integer that exists, ${share} % are clipped all the same (of a grid of 1,600). A row of a layer has thousands of columns, and one that is clipped is enough.`),
  ];
}

/** Pivots in both orders. */
export function orders({ own, other, state }) {
  const rows = [own, other]
    .sort((a, b) => a.order[0] - b.order[0])
    .map(({ order, pivots, sum }) => [
      `${column(order[0])} first${order[0] === state.first ? " (shown)" : ""}`,
      fixed(pivots[0], 4),
      fixed(pivots[1], 4),
      fixed(pivots[0] * pivots[1], 4),
      fixed(4 * sum, 4),
    ]);
  return table(
    "Orders",
    ["", "R of column 1", "R of column 2", "product", "(R · step)², summed"],
    rows,
  );
}

/** Steps, the box that they make, and what it saves to have its sides equal. */
export function sidesOf({ own, bound, state }) {
  const sides = own.factor.map((row, j) => Math.abs(row[j] * own.step[j]));
  const equal = sides[0] * sides[1];
  const rows = own.columns.map((c, j) => [column(c), fixed(state.step[c], 3), fixed(own.factor[j][j], 4), fixed(sides[j], 4)]);
  const saved = Math.log2((sides[0] ** 2 + sides[1] ** 2) / 2 / equal) / 2;
  return make(
    "div",
    {},
    table("The box", ["", "step", "R", "side = step · R"], rows.reverse()),
    make("p", {}, `Area ${fixed(equal, 4)}, bound ${fixed(bound, 4)}. A square of this area would have the bound ${fixed(equal / 2, 4)}: worth ${fixed(saved, 3)} bits a weight (½ log₂ AM/GM of the squared sides).`),
  );
}

/** Code lengths and what they do to cells. */
export function lengths({ length, state, bits, losses }) {
  const span = (length.length - 1) / 2;
  const integers = [-3, -2, -1, 0, 1, 2, 3];
  return make(
    "div",
    {},
    table("Bits of an integer", ["", ...integers.map((z) => said([z]))], [
      ["bits", ...integers.map((z) => fixed(length[z + span], 2))],
    ]),
    make("p", {}, `A bit is worth ν = ${fixed(state.slope, 3)} squared steps. Here rate-aware rounding takes ${fixed(bits.rate, 2)} bits at loss ${fixed(losses.rate, 4)}, nearest plane ${fixed(bits["nearest-plane"], 2)} bits at ${fixed(losses["nearest-plane"], 4)}.`),
  );
}

/** The reduced basis. */
export function reduction({ transform, own, losses, codes }) {
  const rows = own.places.map((place, c) => [column(c), ...transform[place].map((x) => said([x]))]);
  return make(
    "div",
    {},
    table("T: reduced arrows as sums of the columns’", ["", "reduced 1", "reduced 2"], rows),
    make("p", {}, `On the reduced basis nearest plane gives (${said(codes.reduced)}), loss ${fixed(losses.reduced, 4)}; on the columns themselves (${said(codes["nearest-plane"])}), loss ${fixed(losses["nearest-plane"], 4)}.`),
  );
}

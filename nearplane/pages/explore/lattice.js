// The mathematics of nearplane/lattice/, for one row of a weight: tests/pages/test_lattice_port.py
// compares every function with Python's. Names and conventions are those of docs/NAMES.md.
import {
  cholesky,
  diagonal,
  dot,
  inverse,
  inverseOrder,
  matvec,
  permuted,
  solveUpper,
  transpose,
} from "./matrices.js";

/** x rounded half to even and clipped to low .. high; null stands for no limit. */
export function nearestInteger(x, low = null, high = null) {
  let nearest = Math.round(x); // half goes up
  if (nearest - x === 0.5 && nearest % 2 !== 0) nearest -= 1;
  if (low !== null && nearest < low) nearest = low;
  if (high !== null && nearest > high) nearest = high;
  return nearest + 0; // −0 becomes 0
}

/** hessian + damping · mean(diagonal) · I. */
export function damp(hessian, damping) {
  const shift = (damping * diagonal(hessian).reduce((a, b) => a + b, 0)) / hessian.length;
  return hessian.map((row, i) => row.map((x, j) => (x + hessian[j][i]) / 2 + (i === j ? shift : 0)));
}

/** Upper triangular R with RᵀR = the damped Hessian on columns order reversed; null if none. */
export function factor(hessian, order, damping) {
  const lower = cholesky(permuted(damp(hessian, damping), [...order].reverse()));
  return lower && transpose(lower);
}

/** The columns in the order in which they are rounded: "natural", "activation", "min-pivot". */
export function orderColumns(hessian, name, damping = 0.01) {
  const natural = hessian.map((_, k) => k);
  if (name === "natural") return natural;
  if (name === "activation") return natural.sort((a, b) => hessian[b][b] - hessian[a][a] || a - b);
  if (name === "min-pivot") return minPivot(damp(hessian, damping)).reverse();
  throw new Error(`no order is called ${name}`);
}

/** The columns in the order in which the smallest remaining pivot is eliminated. */
export function minPivot(damped) {
  const schur = damped.map((row) => [...row]);
  const left = damped.map((_, k) => k);
  const elimination = [];
  while (left.length) {
    const p = left.reduce((best, k) => (schur[k][k] < schur[best][best] ? k : best));
    elimination.push(p);
    left.splice(left.indexOf(p), 1);
    for (const i of left) for (const j of left) schur[i][j] -= (schur[i][p] * schur[p][j]) / schur[p][p];
  }
  return elimination;
}

/** Round every weight by itself. */
export const roundToNearest = (weight, step, low = null, high = null) =>
  weight.map((w, j) => nearestInteger(w / step[j], low, high));

/**
 * Babai's nearest plane: the integers of one row, last column of the factor first.
 *
 * `target` and `step` are on the factor's columns. `trace` has one entry a step, the first rounded
 * first: column j, best value ζ (in steps), integer, and `projected`, the point that is left to
 * approximate, Y of the columns that are not yet rounded.
 */
export function nearestPlane(target, factor, step, low = null, high = null) {
  const n = target.length;
  const code = new Array(n).fill(0);
  const left = matvec(factor, target); // Y = R w, from which the rounded columns are taken
  const trace = [];
  for (let j = n - 1; j >= 0; j--) {
    const best = left[j] / (factor[j][j] * step[j]);
    code[j] = nearestInteger(best, low, high);
    for (let i = 0; i <= j; i++) left[i] -= factor[i][j] * step[j] * code[j];
    trace.push({ j, best, integer: code[j], projected: left.slice(0, j), residual: left[j] });
  }
  return { code, residual: left, trace };
}

/** The weights of the columns not yet rounded that are best now: what GPTQ has after its update. */
export const remainingWeights = (factor, projected) =>
  solveUpper(factor.slice(0, projected.length).map((row) => row.slice(0, projected.length)), projected);

/**
 * GPTQ, as its paper writes it: the integers of one row on the original columns.
 *
 * With L the unit lower factor of the inverse of the damped Hessian on `order`, for every column:
 * ζ = W_j / S_j, Z_j = round(ζ), ε = Z_j S_j − W_j, W_j.. += L_j.. ε
 */
export function gptq(weight, hessian, step, order, damping, low = null, high = null) {
  const lower = cholesky(inverse(permuted(damp(hessian, damping), order)));
  const compensated = order.map((column) => weight[column]);
  const code = new Array(weight.length).fill(0);
  const trace = [];
  order.forEach((column, j) => {
    const best = compensated[j] / step[column];
    code[column] = nearestInteger(best, low, high);
    const error = code[column] * step[column] - compensated[j];
    for (let i = j; i < order.length; i++) compensated[i] += (error * lower[i][j]) / lower[j][j];
    const update = lower.slice(j + 1).map((row) => row[j] / lower[j][j]);
    const remaining = compensated.slice(j + 1);
    trace.push({ column, best, integer: code[column], error, update, remaining });
  });
  return { code, trace };
}

/**
 * The integers of the closest lattice point, by enumeration of all that may be closer than the
 * best so far (Schnorr and Euchner). Exponential: for a few columns.
 */
export function closest(target, factor, step, low = null, high = null) {
  const n = target.length;
  const scaled = factor.map((row) => row.map((x, j) => x * step[j]));
  const aim = matvec(factor, target);
  const code = new Array(n).fill(0);
  const left = Array.from({ length: n + 1 }, () => [...aim]); // Y below column j
  let found = null;
  let least = Infinity;
  const descend = (j, sum) => {
    if (j < 0) {
      found = [...code];
      least = sum;
      return;
    }
    const best = left[j + 1][j] / scaled[j][j];
    const cost = (integer) => sum + ((best - integer) * scaled[j][j]) ** 2;
    const first = nearestInteger(best, low, high);
    const visit = (integer) => {
      code[j] = integer;
      for (let i = 0; i < j; i++) left[j][i] = left[j + 1][i] - scaled[i][j] * integer;
      descend(j - 1, cost(integer));
    };
    if (cost(first) < least) visit(first);
    for (let up = first + 1; cost(up) < least && (high === null || up <= high); up++) visit(up);
    for (let down = first - 1; cost(down) < least && (low === null || down >= low); down--) visit(down);
  };
  descend(n - 1, 0);
  return found;
}

/** (weight − step · code) · hessian · (weight − step · code)ᵀ. */
export function loss(weight, code, step, hessian) {
  const error = weight.map((w, j) => w - step[j] * code[j]);
  return dot(error, matvec(hessian, error));
}

/** R_jj² s_j²: the squared sides of the box that nearest plane's residual lies in. */
export const squaredSides = (factor, step) => diagonal(factor).map((pivot, j) => (pivot * step[j]) ** 2);

const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

/** ¼ Σ R_jj² s_j²: an upper bound of the loss of nearest plane without limits of the integers. */
export const bound = (factor, step) => sum(squaredSides(factor, step)) / 4;

/** (1/12) Σ R_jj² s_j²: the mean loss of residuals that are uniform in the box. */
export const expectedLoss = (factor, step) => sum(squaredSides(factor, step)) / 12;

/** γ with ‖residual of nearest plane‖ ≤ γ · ‖residual of the closest point‖. */
export function relativeFactor(factor, step) {
  const sides = squaredSides(factor, step);
  let upTo = 0;
  return Math.sqrt(1 + Math.max(...sides.map((side) => (upTo += side) / side)));
}

/** ½ log₂(mean R_jj² / geometric mean R_jj²): bits a weight that unequal steps save. */
export function amGmBits(factor) {
  const squares = diagonal(factor).map((pivot) => pivot ** 2);
  return (Math.log2(sum(squares) / squares.length) - sum(squares.map(Math.log2)) / squares.length) / 2;
}

/** A Hessian prepared for rounding: columns of the factor, the factor, and order's inverse. */
export function basis(hessian, order, damping) {
  const columns = [...order].reverse();
  return { order, columns, factor: factor(hessian, order, damping), places: inverseOrder(columns) };
}

/** Values of the original columns in the order of the factor's, and back. */
export const toFactor = (values, { columns }) => columns.map((column) => values[column]);
export const fromFactor = (values, { places }) => places.map((place) => values[place]);

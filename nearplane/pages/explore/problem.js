// The two-column problem that the page shows: what is set, and all that follows from it.
import { diagonal, identity, inverse, matmul, matvec, transpose } from "./matrices.js";
import * as lattice from "./lattice.js";
import { lll, nearestPlaneReduced, reducedFactor } from "./reduce.js";
import { bitsOf, cellSides, fallingLengths, HIGH_RATE_SLOPE, rateAwarePlane } from "./rate.js";

export const SPAN = 8; // integers with a code length of their own: −8 .. 8

export const METHODS = {
  "nearest-plane": "nearest plane",
  closest: "closest dot",
  nearest: "round to nearest",
  reversed: "nearest plane, other order",
  reduced: "nearest plane on the reduced basis",
  rate: "rate-aware nearest plane",
};

export const initial = () => ({
  large: 1.7,
  small: 0.3,
  angle: 35,
  turn: identity(2), // the picture may be turned: error is a length, whatever its direction
  damping: 0,
  step: [1, 1],
  weight: [0.47, -0.71],
  first: 1, // the column that is rounded first: the factor's last
  limited: false,
  low: -2,
  high: 1,
  slope: HIGH_RATE_SLOPE,
  fall: 1,
  method: "nearest-plane",
  cells: true,
  misses: false,
  stage: 2, // columns whose rounding is drawn
});

/** The Hessian with the eigenvalues and the direction of the larger one. */
export function hessianOf({ large, small, angle }) {
  const [c, s] = [Math.cos((angle * Math.PI) / 180), Math.sin((angle * Math.PI) / 180)];
  const mixed = (large - small) * c * s;
  return [
    [large * c * c + small * s * s, mixed],
    [mixed, large * s * s + small * c * c],
  ];
}

/** Eigenvalues and direction of a symmetric 2 x 2 matrix, as the sliders have them. */
export function eigenOf([[a, b], [, d]]) {
  const [mean, radius] = [(a + d) / 2, Math.hypot((a - d) / 2, b)];
  const angle = (Math.atan2(2 * b, a - d) * 90) / Math.PI;
  return { large: mean + radius, small: mean - radius, angle };
}

/** The symmetric square root of a positive definite 2 x 2 matrix. */
export function squareRoot(matrix) {
  const { large, small, angle } = eigenOf(matrix);
  return hessianOf({ large: Math.sqrt(large), small: Math.sqrt(small), angle });
}

/** Settings whose picture has these two vectors for one step of each column; null if there are none. */
export function withVectors(state, vectors) {
  const root = transpose(vectors.map((vector, k) => vector.map((x) => x / state.step[k])));
  const damped = matmul(transpose(root), root);
  const shift = ((state.damping / (1 + state.damping)) * (damped[0][0] + damped[1][1])) / 2;
  const eigen = eigenOf(damped.map((row, i) => row.map((x, j) => x - (i === j ? shift : 0))));
  if (!(eigen.small > 0.02 && eigen.large < 12)) return null;
  return { ...state, ...eigen, turn: matmul(root, inverse(squareRoot(damped))) };
}

/** Everything that follows from the settings. */
export function derive(state) {
  const hessian = hessianOf(state);
  const damped = lattice.damp(hessian, state.damping);
  const root = matmul(state.turn, squareRoot(damped)); // FᵀF = the damped Hessian
  const orders = [[0, 1], [1, 0]];
  const own = orientation(state, hessian, root, orders[state.first]);
  const other = orientation(state, hessian, root, orders[1 - state.first]);
  const limits = state.limited ? [state.low, state.high] : [null, null];
  const length = fallingLengths(state.fall, SPAN);
  const transform = lll(own.factor, own.step);
  const reduced = reducedFactor(own.factor, own.step, transform);
  const found = { state, hessian, damped, root, own, other, limits, length, transform, reduced };
  const codes = Object.fromEntries(
    Object.keys(METHODS).map((method) => [method, rounded(found, method, state.weight)]),
  );
  const plane = lattice.nearestPlane(own.target, own.factor, own.step, ...limits);
  const priced = rateAwarePlane(own.target, own.factor, own.step, length, state.slope);
  const update = lattice.gptq(state.weight, hessian, state.step, own.order, state.damping, ...limits);
  const losses = Object.fromEntries(
    Object.entries(codes).map(([m, code]) => [m, lattice.loss(state.weight, code, state.step, damped)]),
  );
  const bits = Object.fromEntries(Object.entries(codes).map(([m, code]) => [m, bitsOf(code, length)]));
  return {
    ...found,
    ...{ codes, losses, bits, update },
    trace: (state.method === "rate" ? priced : plane).trace,
    sides: cellSides(own.factor, own.step, length, state.slope),
    bound: lattice.bound(own.factor, own.step),
    inverse: inverse(damped),
  };
}

/** Nearest plane's view of the problem in one order; `rotation` leads from R's axes to the picture's. */
function orientation(state, hessian, root, order) {
  const made = lattice.basis(hessian, order, state.damping);
  const permutedRoot = root.map((row) => lattice.toFactor(row, made));
  const upperInverse = inverseUpper(made.factor);
  return {
    ...made,
    rotation: matmul(permutedRoot, upperInverse),
    target: lattice.toFactor(state.weight, made),
    step: lattice.toFactor(state.step, made),
    pivots: lattice.fromFactor(diagonal(made.factor), made),
    sum: lattice.bound(made.factor, lattice.toFactor(state.step, made)),
  };
}

const inverseUpper = ([[a, b], [, d]]) => [
  [1 / a, -b / (a * d)],
  [0, 1 / d],
];

/** The integers that a method chooses for a weight, on the original columns. */
export function rounded(found, method, weight) {
  const { state, own, other, limits, length } = found;
  const on = ({ factor, step }, basis) => [lattice.toFactor(weight, basis), factor, step];
  const back = ({ code }, basis) => lattice.fromFactor(code, basis);
  switch (method) {
    case "nearest":
      return lattice.roundToNearest(weight, state.step, ...limits);
    case "nearest-plane":
      return back(lattice.nearestPlane(...on(own, own), ...limits), own);
    case "reversed":
      return back(lattice.nearestPlane(...on(other, other), ...limits), other);
    case "closest":
      return back({ code: lattice.closest(...on(own, own), ...limits) }, own);
    case "reduced": // integers of the original basis are mixed: there are no limits to apply
      return back(nearestPlaneReduced(on(own, own)[0], own.factor, found.transform, found.reduced), own);
    case "rate":
      return back(rateAwarePlane(...on(own, own), length, state.slope), own);
  }
  throw new Error(`no method is called ${method}`);
}

/** Where a point of the lattice, or of weights divided by steps, lies in the picture. */
export const placeOf = ({ root, state }, code) => matvec(root, code.map((z, k) => z * state.step[k]));

/** The weights that a place of the picture stands for. */
export const weightAt = ({ root }, place) => {
  const [[a, b], [c, d]] = root;
  const det = a * d - b * c;
  return [(d * place[0] - b * place[1]) / det, (a * place[1] - c * place[0]) / det];
};

/** For each of the factor's columns, the side on which nearest plane with limits leaves the box, or 0. */
export function sidesLeft({ own, limits }, weight) {
  const { trace } = lattice.nearestPlane(lattice.toFactor(weight, own), own.factor, own.step, ...limits);
  return trace.map(({ j, residual }) => {
    const half = (own.factor[j][j] * own.step[j]) / 2;
    return Math.abs(residual) > half * (1 + 1e-9) ? Math.sign(residual) : 0;
  });
}

/** The columns whose integer does not exist: column, integer that nearest plane wants, integer taken. */
export function clippedColumns({ own, trace }) {
  return trace
    .map(({ j, best, integer }) => ({ column: own.columns[j], wanted: lattice.nearestInteger(best), integer }))
    .filter(({ wanted, integer }) => wanted !== integer);
}

/** Of targets whose weights all round to integers that exist, the share that is clipped all the same. */
export function clippedInRange(found, side = 40) {
  const { step, low, high } = found.state;
  const at = (k, share) => (low - 0.5 + (high - low + 1) * share) * step[k];
  let clipped = 0;
  for (let i = 0; i < side * side; i++) {
    const weight = [at(0, ((i % side) + 0.5) / side), at(1, (Math.floor(i / side) + 0.5) / side)];
    clipped += Number(sidesLeft(found, weight).some((left) => left !== 0));
  }
  return clipped / side ** 2;
}

/**
 * For some methods, the share of targets that are not taken to the closest dot, and the mean loss
 * over the least, over a grid of targets in one cell of the lattice.
 */
export function survey(found, methods, side = 40) {
  const { step } = found.state;
  const sums = methods.map(() => ({ missed: 0, ratio: 0 }));
  let least = 0;
  const lossOf = (weight, code) => lattice.loss(weight, code, step, found.damped);
  for (let at = 0; at < side * side; at++) {
    const weight = [(((at % side) + 0.5) / side) * step[0], ((Math.floor(at / side) + 0.5) / side) * step[1]];
    const smallest = lossOf(weight, rounded(found, "closest", weight));
    least += smallest;
    methods.forEach((method, k) => {
      const loss = lossOf(weight, rounded(found, method, weight));
      sums[k].missed += Number(loss > smallest * (1 + 1e-9)) / side ** 2;
      sums[k].ratio += loss;
    });
  }
  return sums.map(({ missed, ratio }) => ({ missed, ratio: ratio / least }));
}

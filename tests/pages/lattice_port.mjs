// Reads problems as JSON, one a line, and writes what the page's JavaScript makes of each.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const folder = pathToFileURL(`${process.argv[2]}/`);
const [lattice, reduce, rate] = await Promise.all(
  ["lattice.js", "reduce.js", "rate.js"].map((name) => import(new URL(name, folder))),
);

function solved({ weight, hessian, step, order, damping, low, high, length, slope }) {
  const named = Object.fromEntries(
    ["natural", "activation", "min-pivot"].map((n) => [n, lattice.orderColumns(hessian, n, damping)]),
  );
  const basis = lattice.basis(hessian, order, damping);
  const [target, steps] = [weight, step].map((values) => lattice.toFactor(values, basis));
  const { factor } = basis;
  const plane = lattice.nearestPlane(target, factor, steps);
  const clipped = lattice.nearestPlane(target, factor, steps, low, high);
  const update = lattice.gptq(weight, hessian, step, order, damping);
  const positive = steps.map(Math.abs);
  const transform = reduce.lll(factor, positive);
  const reduced = reduce.reducedFactor(factor, positive, transform);
  return {
    orders: named,
    factor,
    rtn: lattice.roundToNearest(weight, step),
    nearest_plane: plane.code,
    best: plane.trace.map((each) => each.best),
    clipped: clipped.code,
    gptq: update.code,
    gptq_best: update.trace.map((each) => each.best),
    gptq_clipped: lattice.gptq(weight, hessian, step, order, damping, low, high).code,
    closest: lattice.closest(target, factor, steps),
    closest_clipped: lattice.closest(target, factor, steps, low, high),
    loss: lattice.loss(weight, lattice.fromFactor(plane.code, basis), step, lattice.damp(hessian, damping)),
    residual: plane.residual,
    bound: lattice.bound(factor, steps),
    expected: lattice.expectedLoss(factor, steps),
    relative: lattice.relativeFactor(factor, steps),
    am_gm: lattice.amGmBits(factor),
    transform,
    reduced: reduce.nearestPlaneReduced(target, factor, transform, reduced).code,
    rate_aware: rate.rateAwarePlane(target, factor, positive, length, slope).code,
    sides: rate.cellSides(factor, positive, length, slope),
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  const given = JSON.parse(line);
  const ties = () => given.ties.map((x) => lattice.nearestInteger(x, given.low, given.high));
  console.log(JSON.stringify(given.ties ? ties() : solved(given)));
}

// Rate-aware nearest plane, as nearplane/lattice/rate_aware.py has it. Code lengths and thresholds
// are float32 there, and so they are here.
import { matvec } from "./matrices.js";

export const HIGH_RATE_SLOPE = 0.11552453009332421; // 2 ln 2 / 12
const float32 = Math.fround;

/**
 * θ(z) for z = −span − 1 .. span: from z + θ(z) upwards, z + 1 costs less than z.
 * `length`: bits of z = −span .. span; integers beyond ±span cost what ±span costs.
 */
export function thresholds(length, slope) {
  const bits = length.map(float32);
  const difference = [0, ...bits.slice(1).map((x, k) => float32(x - bits[k])), 0];
  const half = float32(slope / 2);
  return difference.map((d) => Math.min(1, Math.max(0, float32(0.5 + float32(half * d)))));
}

/** The largest |ζ − z| that an element can have, in steps. */
export function halfWidth(length, slope) {
  return Math.max(...thresholds(length, slope).map((theta) => Math.max(theta, 1 - theta)));
}

/** The one of ζ's two neighbours that minimises (ζ − z)² + ν len(z). */
export function cheaper(best, theta) {
  const span = theta.length / 2 - 1;
  const below = Math.floor(best);
  const place = Math.min(span, Math.max(-span - 1, below)) + span + 1;
  return below + Number(best - below > theta[place]);
}

/** Nearest plane whose integers weigh squared error against code length, last column first. */
export function rateAwarePlane(target, factor, step, length, slope) {
  const theta = thresholds(length, slope);
  const left = matvec(factor, target);
  const code = new Array(target.length).fill(0);
  const trace = [];
  for (let j = target.length - 1; j >= 0; j--) {
    const best = left[j] / (factor[j][j] * step[j]);
    code[j] = cheaper(best, theta) + 0;
    for (let i = 0; i <= j; i++) left[i] -= factor[i][j] * step[j] * code[j];
    trace.push({ j, best, integer: code[j], projected: left.slice(0, j), residual: left[j] });
  }
  return { code, residual: left, trace };
}

/** 2 c R_jj s_j: the sides of the box that a rate-aware residual lies in. */
export const cellSides = (factor, step, length, slope) =>
  factor.map((row, j) => 2 * halfWidth(length, slope) * row[j] * step[j]);

/** Bits of z = −span .. span, −log₂ of p(z) ∝ 2^(−|z| · fall), as float32. */
export function fallingLengths(fall, span) {
  const weights = Array.from({ length: 2 * span + 1 }, (_, k) => 2 ** (-Math.abs(k - span) * fall));
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.map((w) => float32(-Math.log2(w / total)));
}

/** Bits of all integers of a row together. */
export function bitsOf(code, length) {
  const span = (length.length - 1) / 2;
  return code.reduce((bits, z) => bits + length[Math.min(span, Math.max(-span, z)) + span], 0);
}

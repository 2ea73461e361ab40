// LLL lattice reduction, as nearplane/lattice/reduce.py has it of fpylll.
import { identity, matmul, matvec, qr, solveUpper, transpose } from "./matrices.js";
import { nearestPlane } from "./lattice.js";

const SIZE_REDUCED = 0.51; // the largest |R̂_kj| / R̂_kk that is left as it is

/**
 * A unimodular T such that the columns of R · diag(s) · T are LLL-reduced:
 * |R̂_kj| ≤ 0.51 R̂_kk and R̂_jj² + R̂_j-1,j² ≥ δ R̂_j-1,j-1².
 */
export function lll(factor, step, delta = 0.99) {
  const n = factor.length;
  const given = factor.map((row) => row.map((x, j) => x * step[j]));
  const columns = transpose(identity(n)); // of T
  const triangular = () => qr(transpose(columns.map((t) => matvec(given, t)))).r;
  let r = triangular();
  for (let k = 1; k < n; ) {
    reduceSize(columns, r, k);
    if (r[k][k] ** 2 + r[k - 1][k] ** 2 >= delta * r[k - 1][k - 1] ** 2) {
      k += 1;
    } else {
      [columns[k - 1], columns[k]] = [columns[k], columns[k - 1]];
      r = triangular();
      k = Math.max(k - 1, 1);
    }
  }
  return transpose(columns).map((row) => row.map((x) => x + 0));
}

/**
 * Take integer multiples of the earlier columns from column k, of T and of R̂, in place.
 * As fpylll does: once one multiple is beyond 0.51, all are rounded to nearest.
 */
function reduceSize(columns, r, k) {
  const beyond = (i) => Math.abs(r[i][k] / r[i][i]) > SIZE_REDUCED;
  while (columns.slice(0, k).some((_, i) => beyond(i))) {
    for (let i = k - 1; i >= 0; i--) {
      const times = Math.round(r[i][k] / r[i][i]);
      columns[k] = columns[k].map((x, place) => x - times * columns[i][place]);
      for (let row = 0; row <= i; row++) r[row][k] -= times * r[row][i];
    }
  }
}

/** Q and R̂ with Q R̂ = R · diag(s) · T. */
export const reducedFactor = (factor, step, transform) =>
  qr(matmul(factor.map((row) => row.map((x, j) => x * step[j])), transform));

/** Round on the reduced basis R · diag(s) · T; the integers are of the original basis. */
export function nearestPlaneReduced(target, factor, transform, { q, r }) {
  const coordinates = solveUpper(r, matvec(transpose(q), matvec(factor, target)));
  const { code } = nearestPlane(coordinates, r, target.map(() => 1));
  return { code: matvec(transform, code).map((x) => x + 0) };
}

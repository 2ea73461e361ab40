// Matrices are arrays of rows, vectors arrays of numbers; nothing here changes its arguments.

export const dot = (a, b) => a.reduce((sum, x, k) => sum + x * b[k], 0);
export const matvec = (matrix, vector) => matrix.map((row) => dot(row, vector));
export const transpose = (matrix) => matrix[0].map((_, k) => matrix.map((row) => row[k]));
export const matmul = (a, b) => {
  const columns = transpose(b);
  return a.map((row) => columns.map((column) => dot(row, column)));
};
export const identity = (n) =>
  Array.from({ length: n }, (_, i) => Array.from({ length: n }, (_, j) => Number(i === j)));
export const diagonal = (matrix) => matrix.map((row, k) => row[k]);
export const permuted = (matrix, order) => order.map((i) => order.map((j) => matrix[i][j]));

/** The inverse of a permutation. */
export function inverseOrder(order) {
  const inverse = new Array(order.length);
  order.forEach((column, place) => (inverse[column] = place));
  return inverse;
}

/** Lower triangular L with L Lᵀ = matrix; null if the matrix is not positive definite. */
export function cholesky(matrix) {
  const n = matrix.length;
  const lower = Array.from({ length: n }, () => new Array(n).fill(0));
  for (let j = 0; j < n; j++) {
    let pivot = matrix[j][j];
    for (let k = 0; k < j; k++) pivot -= lower[j][k] ** 2;
    if (!(pivot > 0) || !Number.isFinite(pivot)) return null;
    lower[j][j] = Math.sqrt(pivot);
    for (let i = j + 1; i < n; i++) {
      let sum = matrix[i][j];
      for (let k = 0; k < j; k++) sum -= lower[i][k] * lower[j][k];
      lower[i][j] = sum / lower[j][j];
    }
  }
  return lower;
}

/** x with upper · x = right, where upper is upper triangular. */
export function solveUpper(upper, right) {
  const x = [...right];
  for (let i = x.length - 1; i >= 0; i--) {
    for (let k = i + 1; k < x.length; k++) x[i] -= upper[i][k] * x[k];
    x[i] /= upper[i][i];
  }
  return x;
}

/** The inverse of a symmetric positive definite matrix, by its Cholesky factor. */
export function inverse(matrix) {
  const upper = transpose(cholesky(matrix));
  const inverseUpper = transpose(identity(matrix.length).map((unit) => solveUpper(upper, unit)));
  return matmul(inverseUpper, transpose(inverseUpper));
}

/** Q and upper triangular R, its diagonal positive, with Q R = matrix (square, invertible). */
export function qr(matrix) {
  const columns = transpose(matrix);
  const n = columns.length;
  const q = [];
  const r = Array.from({ length: n }, () => new Array(n).fill(0));
  for (let j = 0; j < n; j++) {
    let rest = [...columns[j]];
    // twice: once leaves errors that grow with the condition of the matrix
    for (let again = 0; again < 2; again++) {
      for (let k = 0; k < j; k++) {
        const share = dot(q[k], rest);
        r[k][j] += share;
        rest = rest.map((x, i) => x - share * q[k][i]);
      }
    }
    r[j][j] = Math.hypot(...rest);
    q.push(rest.map((x) => x / r[j][j]));
  }
  return { q: transpose(q), r };
}

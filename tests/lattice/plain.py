"""The algorithms once more, in numpy, from the papers' words: they share no line with nearplane.

The one inverse is torch's: numpy's LAPACK takes a hundred times longer here, for its threads.
"""

import itertools

import numpy as np
import torch


def clip(x, limits):
    """Round half to even and clip; `limits` is None for all of ℤ."""
    nearest = np.rint(x)
    return nearest if limits is None else np.clip(nearest, *limits)


def damped_inputs(inputs, damping):
    """Return a matrix F with FᵀF = the damped Hessian: √λ·I below the inputs / √tokens."""
    tokens, n = inputs.shape
    share = damping * np.mean(np.sum(inputs**2, axis=0) / tokens)
    return np.vstack([inputs / np.sqrt(tokens), np.sqrt(share) * np.eye(n)])


def gram_schmidt(vectors):
    """Return an orthonormal basis of the rows, in their order; each is projected twice."""
    phi = np.zeros_like(vectors)
    for j, vector in enumerate(vectors):
        for _ in range(2):
            vector = vector - phi[:j].T @ (phi[:j] @ vector)
        phi[j] = vector / np.sqrt(vector @ vector)
    return phi


def babai(basis, weight, step, order, limits=None):
    """Algorithm 2 [Chen26] on an explicit basis, whose columns belong to weight's.

    Gram-Schmidt runs over order backwards. For j = n .. 1: ζ = ⟨φ_j, y'⟩ / ⟨φ_j, a_j⟩,
    z_j = round(ζ), y' -= a_j z_j. φ_j does not change when a_j is scaled, so rows share it.
    """
    columns = order[::-1]
    step = np.ascontiguousarray(np.broadcast_to(step, weight.shape).T)
    phi = gram_schmidt(basis[:, columns].T)
    left = basis @ weight.T
    code = np.zeros(step.shape, np.int64)
    for j in reversed(range(len(columns))):
        column = columns[j]
        a = np.ascontiguousarray(basis[:, column])
        zeta = phi[j] @ left / (phi[j] @ a * step[column])
        code[column] = clip(zeta, limits)
        left -= np.outer(a, step[column] * code[column])
    return code.T


def optimal_brain(hessian, weight, step, order, limits=None):
    """GPTQ before it had a Cholesky [Frantar23, eq. 2 and 3]: the inverse shrinks step by step.

    Column p is rounded; the others move by −(w_p − q_p) / [H⁻¹]_pp · [H⁻¹]_p,: and p leaves the
    inverse, H⁻¹ −= H⁻¹[:,p] H⁻¹[p,:] / [H⁻¹]_pp.
    """
    inverse = torch.linalg.inv(torch.from_numpy(hessian)).numpy()
    work = np.ascontiguousarray(weight.T)
    step = np.ascontiguousarray(np.broadcast_to(step, weight.shape).T)
    code = np.zeros(step.shape, np.int64)
    for p in order:
        code[p] = clip(work[p] / step[p], limits)
        miss = work[p] - step[p] * code[p]
        work -= np.outer(inverse[p] / inverse[p, p], miss)
        inverse -= np.outer(inverse[:, p], inverse[p]) / inverse[p, p]
    return code.T


def smallest_pivots(hessian):
    """Algorithm 3 [Chen26]: take the smallest diagonal, then the full Schur update."""
    schur, taken = hessian.copy(), []
    while len(taken) < len(hessian):
        diagonal = schur.diagonal().copy()
        diagonal[taken] = np.inf
        p = int(np.argmin(diagonal))
        taken.append(p)
        schur -= np.outer(schur[:, p], schur[p]) / schur[p, p]
    return taken


def loss(weight, value, hessian):
    """Return error · hessian · errorᵀ of every row."""
    error = weight - value
    return np.einsum("ij,jk,ik->i", error, hessian, error)


def best_of_all(weight, step, hessian, candidates):
    """Return the least loss over all codes in the product of `candidates`, one list a column."""
    codes = np.array(list(itertools.product(*candidates)))
    return loss(weight[None], codes * step[None], hessian).min()

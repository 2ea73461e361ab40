"""The order in which nearest plane rounds the columns."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from nearplane.lattice.damping import damp

ORDERS = ("natural", "activation", "min-pivot")
PANEL = 64  # columns that are eliminated before the rest is updated, by one matrix product


def order(hessian: Tensor, name: str, damping: float = 0.01) -> Int64[Tensor, " columns"]:
    """Return a permutation of the columns whose first entry is rounded first.

    - "natural": 0, 1, 2 ..., GPTQ without act-order.
    - "activation": the largest diagonal entry first (GPTQ's act-order).
    - "min-pivot": the reverse of the elimination that always takes the smallest remaining
      pivot [Chen26, Alg. 3]; `damping` is that of the basis it is made for.

    Of columns that tie, the one with the lower index comes first; for "min-pivot" it is the
    first to be eliminated.

    Raises ValueError for another name.
    """
    if name == "natural":
        return torch.arange(len(hessian), device=hessian.device)
    if name == "activation":
        return torch.argsort(hessian.diagonal(), descending=True, stable=True)
    if name == "min-pivot":
        return min_pivot(damp(hessian, damping)).flip(0).to(hessian.device)
    raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {name!r}")


def min_pivot(damped: Float64[Tensor, "n n"]) -> Int64[Tensor, " n"]:
    """Return the columns in the order in which the smallest pivot is eliminated [Chen26, Alg. 3].

    This is left-looking Cholesky with pivoting, by the smallest pivot instead of the largest. Row
    p of the Schur complement is computed only when column p is chosen: from the matrix after the
    last full panel, minus what the current panel contributes. Only the diagonal is updated at
    every step.

    Cost: columns³ / 3 multiply-adds, all but a share PANEL / columns of them in matrix products.
    """
    n = len(damped)
    schur = damped.clone()
    pivot = damped.diagonal().clone()
    remaining = torch.arange(n, device=damped.device)  # original index of each column left over
    elimination = torch.empty(n, dtype=torch.long, device=damped.device)
    for first in range(0, n, PANEL):
        taken, panel = _eliminate_panel(schur, pivot, min(PANEL, n - first))
        elimination[first : first + len(taken)] = remaining[taken]
        keep = torch.ones(len(remaining), dtype=torch.bool, device=damped.device)
        keep[taken] = False
        panel = panel[:, keep]
        remaining, pivot = remaining[keep], pivot[keep]
        schur = schur[keep][:, keep].addmm_(panel.T, panel, alpha=-1)
    return elimination


def _eliminate_panel(
    schur: Float64[Tensor, "m m"], pivot: Float64[Tensor, " m"], width: int
) -> tuple[Int64[Tensor, " width"], Float64[Tensor, "width m"]]:
    """Eliminate `width` columns; return their indices and factor rows, update `pivot` in place."""
    panel = schur.new_zeros(width, len(pivot))
    taken: list[int] = []
    candidates = pivot.clone()  # infinite where a column is taken
    for k in range(width):
        p = int(candidates.argmin())
        row = schur[p] - panel[:k, p] @ panel[:k]
        row = row / pivot[p].clamp_min(torch.finfo(row.dtype).tiny).sqrt()
        panel[k] = row
        taken.append(p)
        pivot -= row * row
        candidates -= row * row
        candidates[taken] = torch.inf
    return torch.tensor(taken, device=schur.device), panel

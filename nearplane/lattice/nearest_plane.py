"""Babai's nearest plane on one Cholesky factor, plain and blocked."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from nearplane.op import Op

LEAF = 32  # columns rounded one after the other between two matrix products


def nearest_integer(x: Float[Tensor, "..."], low: int | None, high: int | None) -> Tensor:
    """Return x rounded half to even, clipped to low..high: the one rounding of the package."""
    rounded = torch.round(x)
    return rounded if low is None and high is None else rounded.clamp_(low, high)


def nearest_plane_plain(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "#rows #n"],
    low: int | None = None,
    high: int | None = None,
) -> Int32[Tensor, "rows n"]:
    """Return what `nearest_plane` returns, one column at a time: the version to read.

    Cost: rows · n² / 2 multiply-adds, none of them in matrix products.
    """
    step = step.expand_as(target)
    code = torch.empty_like(target, dtype=torch.int32)
    error = torch.zeros_like(target)
    for j in reversed(range(target.shape[1])):
        # errors already made to the right move the best value of column j
        pull = error[:, j + 1 :] @ (factor[j, j + 1 :] / factor[j, j])
        nearest = nearest_integer((target[:, j] + pull) / step[:, j], low, high)
        code[:, j] = nearest.to(torch.int32)
        error[:, j] = target[:, j] - step[:, j] * nearest
    return code


@Op
def nearest_plane(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "#rows #n"],
    low: int | None = None,
    high: int | None = None,
) -> Int32[Tensor, "rows n"]:
    """Round every row of `target` to a nearby lattice point, one coordinate at a time.

    Greedily minimises ‖(target − step·code) @ factor.T‖², last column first [Babai86]. On
    columns order.flip(0) it returns the codes of GPTQ [Frantar23, Alg. 1], as [Chen26, Thm. 4]
    proves.

    - `target`: weights to quantize; each row is its own closest-vector problem.
    - `factor`: upper triangular R with RᵀR = hessian; no diagonal entry is zero.
    - `step`: non-zero, of either sign, for every element, row, column or the whole.
    - `low`, `high`: admissible codes. With either set, `bound` no longer holds.

    Cost: rows · n² / 2 multiply-adds, all but a share LEAF / n of them in matrix products.
    """
    rows, n = target.shape
    columns = target.T.contiguous()
    step = step.to(target.dtype).expand(rows, n).T if step.shape[1] > 1 else step.T.expand(n, -1)
    step = step.to(target.dtype)
    code = torch.empty(n, rows, dtype=torch.int32, device=target.device)

    def choose(j: int, best: Tensor) -> Tensor:
        nearest = nearest_integer(best.div_(step[j]), low, high)
        code[j] = nearest
        return nearest.mul_(step[j])

    sweep(columns, factor.to(target.dtype), choose)
    return code.T.contiguous()


def sweep(
    target: Float[Tensor, "n rows"],
    factor: Float[Tensor, "n n"],
    choose: Callable[[int, Tensor], Tensor],
) -> Float[Tensor, "n rows"]:
    """Walk the columns last to first; `choose(j, best)` returns the value that column j takes.

    `best` is the real number that would undo every error made so far,

        best_j = target_j + Σ_{k>j} (R_jk / R_jj) (target_k − value_k),

    and is `choose`'s to overwrite. Columns are rows here, so that each is contiguous. The target
    is never overwritten: no drift. Returns the errors target − value.
    """
    unit = factor / factor.diagonal()[:, None]
    best = target.clone()
    error = torch.empty_like(target)

    def solve(first: int, end: int) -> None:
        if end - first <= LEAF:
            return leaf(first, end)
        middle = end - max(LEAF, (end - first) // 2 // LEAF * LEAF)
        solve(middle, end)
        best[first:middle].addmm_(unit[first:middle, middle:end], error[middle:end])
        solve(first, middle)

    def leaf(first: int, end: int) -> None:
        for j in reversed(range(first, end)):
            if j + 1 < end:
                best[j].addmv_(error[j + 1 : end].T, unit[j, j + 1 : end])
            torch.sub(target[j], choose(j, best[j]), out=error[j])

    if len(target):
        solve(0, len(target))
    return error

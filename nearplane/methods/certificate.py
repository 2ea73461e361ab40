"""The error certificate: what rounding cost, and what it could have cost at most."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from nearplane.lattice import Basis
from nearplane.rows import TILE, RowsOf, by_rows

SLACK = 1e-4  # of a box side: float32 decides ties a little differently than float64 checks them

NO_LATTICE = "round-to-nearest walks no lattice: Theorem 5 does not speak of it"


@dataclass(frozen=True)
class Losses:
    """Each row's loss, and how it stands to the box that its residual R·error should lie in.

    - `inside`: whether it does; `bound`: ¼ Σ sides². Without a box no row is inside, and bounds
      are infinite.
    """

    loss: Float64[Tensor, " rows"]
    damped: Float64[Tensor, " rows"]
    inside: Bool[Tensor, " rows"]
    bound: Float64[Tensor, " rows"]


def measure(
    weight: Float[Tensor, "rows n"], value: RowsOf, basis: Basis, sides: RowsOf | None = None
) -> Losses:
    """Return the losses of what `value` gives for the rows of `weight`, in float64.

    - `sides`: of the rows' boxes on the basis's columns, one row or as many; None for no box.
    """

    def of(rows: slice) -> tuple[Tensor, ...]:
        error = weight[rows] - value(rows)
        residual = residuals(error, basis)
        damped = residual.square().sum(1)
        added = basis.damping * basis.hessian.diagonal().double().mean()
        loss = (damped - added * error.double().square().sum(1)).clamp_min(0)
        return loss, damped, *boxed(residual, None if sides is None else sides(rows))

    return Losses(*by_rows(of, len(weight)))


def residuals(error: Float[Tensor, "rows n"], basis: Basis) -> Float64[Tensor, "rows n"]:
    """Return R·error of every row on the basis's columns; Σ_j residual_j² is the damped loss."""
    return times_triangle(error[:, basis.columns].double(), basis.factor)


def times_triangle(
    error: Float64[Tensor, "rows n"], factor: Float64[Tensor, "n n"]
) -> Float64[Tensor, "rows n"]:
    """Return error · factorᵀ for an upper triangular factor, leaving out most of its zeros."""
    product = torch.empty_like(error)
    width = max(64, -(-len(factor) // 4))
    for some, made in zip(error.split(TILE), product.split(TILE), strict=True):
        for first in range(0, len(factor), width):
            stripe = slice(first, first + width)
            made[:, stripe] = some[:, first:] @ factor[stripe, first:].T
    return product


def boxed(
    residual: Float64[Tensor, "rows n"], sides: Float64[Tensor, "#rows n"] | None
) -> tuple[Bool[Tensor, " rows"], Float64[Tensor, " rows"]]:
    """Return which residuals lie in the box of half `sides`, and ¼ Σ sides² of every row."""
    if sides is None:
        none = torch.zeros(len(residual), dtype=torch.bool)
        return none, torch.full((len(residual),), torch.inf, dtype=torch.float64)
    bound = (sides.square().sum(1) / 4).expand(len(residual))
    return inside_box(residual, sides), bound.clone()


def inside_box(
    residual: Float64[Tensor, "rows n"], sides: Float64[Tensor, "#rows n"]
) -> Bool[Tensor, " rows"]:
    """Return which rows' residuals lie in the box of half `sides` that Theorem 5 rests on.

    A clipped code leaves the box by as much as it was clipped; an outlier comes back to it.
    """
    return (residual.abs() <= sides * (0.5 + SLACK)).all(1)


def certify_rows(losses: Losses) -> tuple[Float64[Tensor, " rows"] | None, str]:
    """Return ¼ Σ sides² of the rows inside the box, NaN for the others, and why any is void.

    [Chen26, Thm. 5]
    """
    inside = losses.inside & (losses.damped <= losses.bound)
    voided = int((~inside).sum())
    if not voided:
        return losses.bound, ""
    bound = losses.bound.where(inside, torch.nan)
    void = f"clipped codes void the bound of {voided} of {len(inside)} rows"
    return (bound if voided < len(inside) else None), void


def certify_cells(losses: Losses) -> tuple[Float64[Tensor, " rows"] | None, str]:
    """Return ¼ Σ sides² of the rows whose loss is within it, NaN for the others, and why.

    Rate-aware integers lie in boxes as wide as the widest cell of their context, wherever the
    target was; so every greedy row is within it, and the cheapest of many paths usually is.
    """
    beyond = losses.damped > losses.bound
    if not beyond.any():
        return losses.bound, ""
    bound = losses.bound.where(~beyond, torch.nan)
    void = f"{int(beyond.sum())} of {len(beyond)} rows are cheaper outside their cells"
    return (None if beyond.all() else bound), void


def bound_around(
    bound: Float64[Tensor, " rows"] | None, target_loss: Float64[Tensor, " rows"]
) -> Float64[Tensor, " rows"] | None:
    """Return (√bound + √target_loss)²: the bound of a loss when `bound` is that of another target.

    - `target_loss`: the damped loss of that target itself.
    """
    if bound is None:
        return None
    return torch.where(target_loss > 0, (bound.sqrt() + target_loss.sqrt()).square(), bound)

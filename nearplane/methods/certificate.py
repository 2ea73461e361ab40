"""The error certificate: the loss of a quantized weight, measured, and its upper bound."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from nearplane.lattice import Basis
from nearplane.lattice.damping import diagonal_shift
from nearplane.lattice.float64 import float64_devices
from nearplane.op import Op
from nearplane.rows import TILE, RowsOf, by_rows

BOX_TOLERANCE = 1e-4  # fraction of a box side: codes are chosen in float32 and checked in float64

# why a method that rounds to nearest has no bound
NO_LATTICE = "round-to-nearest walks no lattice: Theorem 5 does not speak of it"


@dataclass(frozen=True)
class Losses:
    """Each row's loss, and the bound that follows if its residual R·error lies in its box.

    - `loss`, `damped`: under the Hessian without and with damping.
    - `inside`: whether the residual lies in the box.
    - `bound`: ¼ Σ sides² of the box.

    For a method without boxes, no row is inside and all bounds are infinite.
    """

    loss: Float64[Tensor, " rows"]
    damped: Float64[Tensor, " rows"]
    inside: Bool[Tensor, " rows"]
    bound: Float64[Tensor, " rows"]


def measure(
    weight: Float[Tensor, "rows n"], value: RowsOf, basis: Basis, sides: RowsOf | None = None
) -> Losses:
    """Return the losses of a quantized weight, in float64, where cubic work is done.

    Errors are taken in the weight's type on its device; all that follows is in float64.

    - `value`: the function that returns some rows of the quantized weight.
    - `sides`: the function that returns the sides of some rows' boxes, in the basis's order of
      columns; one row if they are the same for all. None for a method without boxes.
    """
    device = float64_devices(weight.device).cubic
    there = replace(basis, columns=basis.columns.to(device), factor=basis.factor.to(device))
    shift = diagonal_shift(basis.hessian, basis.damping, device)

    def of_rows(rows: slice) -> tuple[Tensor, ...]:
        error = (weight[rows] - value(rows)).to(device)
        residual = residuals(error, there)
        damped = residual.square().sum(1)
        loss = (damped - shift * error.double().square().sum(1)).clamp_min(0)
        return loss, damped, *check_box(residual, None if sides is None else sides(rows).to(device))

    return Losses(*by_rows(of_rows, len(weight)))


def residuals(error: Float[Tensor, "rows n"], basis: Basis) -> Float64[Tensor, "rows n"]:
    """Return R·error of every row; its squared length is the row's damped loss.

    Errors are in the original order of columns, residuals in the basis's.
    """
    return times_triangle(error[:, basis.columns].double(), basis.factor)


@Op
def times_triangle(
    error: Float64[Tensor, "rows n"], factor: Float64[Tensor, "n n"]
) -> Float64[Tensor, "rows n"]:
    """Return error · factorᵀ for an upper triangular factor, skipping most of its zeros."""
    product = torch.empty_like(error)
    width = max(64, -(-len(factor) // 4))
    for error_tile, product_tile in zip(error.split(TILE), product.split(TILE), strict=True):
        for first in range(0, len(factor), width):
            block = slice(first, first + width)
            product_tile[:, block] = error_tile[:, first:] @ factor[block, first:].T
    return product


def check_box(
    residual: Float64[Tensor, "rows n"], sides: Float64[Tensor, "#rows n"] | None
) -> tuple[Bool[Tensor, " rows"], Float64[Tensor, " rows"]]:
    """Return which rows' residuals lie in their box, and ¼ Σ sides² of every row."""
    if sides is None:
        no_row = torch.zeros(len(residual), dtype=torch.bool, device=residual.device)
        return no_row, torch.full_like(
            residual[:, 0] if residual.numel() else no_row, torch.inf, dtype=torch.float64
        )
    bound = (sides.square().sum(1) / 4).expand(len(residual))
    return inside_box(residual, sides), bound.clone()


def inside_box(
    residual: Float64[Tensor, "rows n"], sides: Float64[Tensor, "#rows n"]
) -> Bool[Tensor, " rows"]:
    """Return which rows have |residual_j| ≤ sides_j / 2 for all j, as Theorem 5 requires.

    A clipped code puts its residual outside by as much as was clipped off; an outlier that stores
    what was clipped off brings it back.
    """
    return (residual.abs() <= sides * (0.5 + BOX_TOLERANCE)).all(1)


def certify_rows(losses: Losses) -> tuple[Float64[Tensor, " rows"] | None, str]:
    """Return ¼ Σ sides² for rows inside their box, NaN for others, and why any row has no bound.

    The bound is None where no row has one [Chen26, Thm. 5].
    """
    inside = losses.inside & (losses.damped <= losses.bound)
    voided = int((~inside).sum())
    if not voided:
        return losses.bound, ""
    bound = losses.bound.where(inside, torch.nan)
    void = f"clipped codes void the bound of {voided} of {len(inside)} rows"
    return (bound if voided < len(inside) else None), void


def certify_cells(losses: Losses) -> tuple[Float64[Tensor, " rows"] | None, str]:
    """Return ¼ Σ sides² for rows whose loss is at most that, NaN for others, and why.

    For rate-aware rounding with the boxes of `lattice.cell_sides`. Greedy rounding (one path) stays
    inside its box. The cheapest of many paths may leave the box, though its loss is usually below
    the bound; a row whose loss exceeds it gets none.
    """
    exceeds = losses.damped > losses.bound
    if not exceeds.any():
        return losses.bound, ""
    bound = losses.bound.where(~exceeds, torch.nan)
    void = f"{int(exceeds.sum())} of {len(exceeds)} rows are cheaper outside their cells"
    return (None if exceeds.all() else bound), void


def bound_around(
    bound: Float64[Tensor, " rows"] | None, target_loss: Float64[Tensor, " rows"]
) -> Float64[Tensor, " rows"] | None:
    """Return (√bound + √target_loss)²: a bound of the damped loss with respect to the weight.

    It follows from the triangle inequality.

    - `bound`: a bound of the damped loss with respect to the target that was rounded towards.
    - `target_loss`: the damped loss of that target as an approximation of the weight.
    """
    if bound is None:
        return None
    return torch.where(target_loss > 0, (bound.sqrt() + target_loss.sqrt()).square(), bound)

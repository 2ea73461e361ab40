"""Rounding under a Hessian of the inputs and one of the outputs: rows make up for each other.

    loss = tr(H_O E H_I Eᵀ) = ‖R_O E R_Iᵀ‖²,   E = target − value,   H = RᵀR

The lattice of all rows together has the basis R_O ⊗ R_I. Nearest plane on it rounds the last row
first, under H_I alone, and moves the target of each row by the errors of the rows behind it:

    target_i + Σ_{k>i} R_O[i, k] / R_O[i, i] · E_k

Where H_O is diagonal, rows do not depend on each other [Tseng25].
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Float64, Int32
from torch import Tensor

from nearplane.lattice.float64 import narrowed

LEAST_BLOCK, MOST_BLOCKS = 16, 32  # rows that are rounded at once; blocks of a matrix

Rounding = Callable[[Float[Tensor, "some n"], slice], Int32[Tensor, "some n"]]


def round_two_sided(
    target: Float[Tensor, "rows n"],
    row_factor: Float64[Tensor, "rows rows"],
    step: Float[Tensor, "1 n"],
    rounding: Rounding,
    block: int | None = None,
) -> Int32[Tensor, "rows n"]:
    """Return the integers of every row, the last `block` rows first.

    With `block` = 1 and nearest plane as `rounding`, this is nearest plane on R_O ⊗ R_I. Rows of
    one block are moved by the errors behind it, as if their own errors will be zero in the mean;
    with R_O's diagonal blocks the expected loss is in proportion to Σ ‖R_O[rows, rows]‖².

    - `row_factor`: R_O, upper triangular.
    - `rounding`: rounds some rows of a moved target, given which rows of `target` they are.
    - `block`: rows that are rounded at once; None for a few percent of them.

    Cost: rows² · n / 2 multiply-adds more than rounding every row by itself.
    """
    code = torch.empty(target.shape, dtype=torch.int32, device=target.device)
    error = torch.empty_like(target)
    for rows in blocks_from_last(len(target), block):
        moved = target[rows] + moves(row_factor, rows, target) @ error[rows.stop :]
        code[rows] = rounding(moved, rows)
        error[rows] = target[rows] - code[rows] * step
    return code


def moved_targets(
    target: Float[Tensor, "rows n"],
    row_factor: Float64[Tensor, "rows rows"],
    error: Float[Tensor, "rows n"],
    block: int | None = None,
) -> Float[Tensor, "rows n"]:
    """Return what every row was rounded towards, by `round_two_sided` with these errors."""
    moved = torch.empty_like(target)
    for rows in blocks_from_last(len(target), block):
        moved[rows] = target[rows] + moves(row_factor, rows, target) @ error[rows.stop :]
    return moved


def blocks_from_last(rows: int, block: int | None) -> list[slice]:
    """Return slices of at most `block` rows that cover them all, from the last to the first."""
    if block is None:
        block = max(LEAST_BLOCK, -(-rows // MOST_BLOCKS))
    return [slice(max(end - block, 0), end) for end in range(rows, 0, -block)]


def moves(
    row_factor: Float64[Tensor, "rows rows"], rows: slice, like: Tensor
) -> Float[Tensor, "some behind"]:
    """Return R_O[rows, rows]⁻¹ R_O[rows, behind]: how errors behind `rows` move their targets.

    In the type and on the device of `like`.
    """
    behind = row_factor[rows, rows.stop :]
    own = row_factor[rows, rows]
    return narrowed(torch.linalg.solve_triangular(own, behind, upper=True), like)

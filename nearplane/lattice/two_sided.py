"""Rounding under a Hessian of the inputs and one of the outputs: rows make up for each other.

    loss = tr(H_O E H_I Eᵀ) = ‖R_O E R_Iᵀ‖²,   E = target − value,   H = RᵀR

The lattice of all rows together has the basis R_O ⊗ R_I. Nearest plane on it rounds the last row
first, under H_I alone, and moves the target of each row by the errors of the rows behind it:

    target_i + Σ_{k>i} R_O[i, k] / R_O[i, i] · E_k

Where H_O is diagonal, rows do not depend on each other [Tseng25].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

import torch
from jaxtyping import Float, Float64, Int32, Int64
from torch import Tensor

from nearplane.op import Op

LEAST_BLOCK, MOST_BLOCKS = 16, 32  # rows that are rounded at once; parts of a block

Rounding = Callable[[Float[Tensor, "some n"], Int64[Tensor, " some"]], Int32[Tensor, "some n"]]


@dataclass(frozen=True)
class RowBlock:
    """Rows that make up for each other's errors: a diagonal block of the output Hessian.

    - `order`: which rows of the weight they are, in the order of the factor; where targets are.
    - `factor`: R_O of the block, upper triangular.
    - `dtype`: of targets and errors.
    - `size`: rows that are rounded at once; None for a few percent of them.
    """

    order: Int64[Tensor, " some"]
    factor: Float64[Tensor, "some some"]
    dtype: torch.dtype
    size: int | None = None

    @cached_property
    def parts(self) -> list[tuple[slice, Float[Tensor, "part behind"]]]:
        """The rows that are rounded at once, from the last to the first, and what moves them.

        It is R_O[rows, rows]⁻¹ R_O[rows, behind]: how errors behind them move their targets.
        """
        count = len(self.factor)
        size = self.size or max(LEAST_BLOCK, -(-count // MOST_BLOCKS))
        rows = [slice(max(end - size, 0), end) for end in range(count, 0, -size)]
        return [(part, self.moves(part)) for part in rows]

    def moves(self, rows: slice) -> Float[Tensor, "part behind"]:
        own, behind = self.factor[rows, rows], self.factor[rows, rows.stop :]
        solved = torch.linalg.solve_triangular(own, behind, upper=True).to(self.dtype)
        return solved.to(self.order.device)


def round_two_sided(
    target: Float[Tensor, "rows n"],
    blocks: Sequence[RowBlock],
    step: Float[Tensor, "1 n"],
    rounding: Rounding,
) -> Int32[Tensor, "rows n"]:
    """Return the integers of every row, the last rows of each block first.

    With one block of `size` 1 and nearest plane as `rounding`, this is nearest plane on R_O ⊗ R_I.
    Rows that are rounded at once are moved by the errors behind them, as if their own errors will
    be zero in the mean; with R_O's diagonal parts the expected loss is in proportion to
    Σ ‖R_O[rows, rows]‖².

    - `blocks`: of all rows.
    - `rounding`: rounds some rows of a moved target, given which rows of `target` they are.

    Cost: rows · the rows of a block · n / 2 multiply-adds more than rounding every row by itself.
    """
    code = torch.empty(target.shape, dtype=torch.int32, device=target.device)
    for group in at_the_same_time(blocks, target.device):
        errors = [target.new_empty(len(block.order), target.shape[1]) for block in group]
        for turn in zip_longest(*(block.parts for block in group)):
            parts = [(at, part) for at, part in enumerate(turn) if part is not None]
            places = [group[at].order[rows] for at, (rows, _) in parts]
            pulls = [moves @ errors[at][rows.stop :] for at, (rows, moves) in parts]
            place, sizes = _stacked(places), list(map(len, places))
            own = target[place]
            found = rounding(own + _stacked(pulls), place)
            code[place] = found
            left = (own - found * step).split(sizes)
            for (at, (rows, _)), error in zip(parts, left, strict=True):
                errors[at][rows] = error
    return code


@Op
def at_the_same_time(blocks: Sequence[RowBlock], device: torch.device) -> list[list[RowBlock]]:
    """Return which blocks are rounded together; they do not depend on each other.

    An accelerator has too little to do for one at a time.
    """
    return [[block] for block in blocks] if device.type == "cpu" else [list(blocks)]


def moved_targets(
    target: Float[Tensor, "rows n"], blocks: Sequence[RowBlock], error: Float[Tensor, "rows n"]
) -> Float[Tensor, "rows n"]:
    """Return what every row was rounded towards, by `round_two_sided` with these errors."""
    result = torch.empty_like(target)
    for block in blocks:
        own, errors = target[block.order], error[block.order]
        moved = torch.empty_like(own)
        for rows, moves in block.parts:
            moved[rows] = own[rows] + moves @ errors[rows.stop :]
        result[block.order] = moved
    return result


def _stacked(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)

"""Nearest plane with clipped codes, where what clipping cuts off is kept beside them."""

import torch
from jaxtyping import Bool, Float, Float16, Int32
from torch import Tensor

from nearplane.lattice.float64 import narrowed
from nearplane.lattice.nearest_plane import nearest_integer, sweep, unit_factor
from nearplane.op import Op

FLOAT16_MAX = 65504.0  # larger outliers are clipped to it, and their row then has no bound


@Op
def nearest_plane_with_outliers(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "rows n"],
    low: int,
    high: int,
) -> tuple[Int32[Tensor, "rows n"], Float16[Tensor, "rows n"], Bool[Tensor, "rows n"]]:
    """Return codes in low .. high, outliers, and which weights are outliers.

    Where the best value of a column rounds to a code outside of low .. high, best − step · code is
    its outlier, in float16; it is 0 elsewhere. Columns after it compensate for the error of
    step · code + outlier [Chen26, Alg. 9, 10].
    """
    columns, step = target.T.contiguous(), step.T.contiguous()
    code = torch.empty_like(columns, dtype=torch.int32)
    outlier = torch.zeros_like(columns, dtype=torch.float16)
    is_outlier = torch.empty_like(columns, dtype=torch.bool)

    def choose(j: int, best: Tensor) -> Tensor:
        unclipped = nearest_integer(best / step[j], None, None)
        nearest = unclipped.clamp(low, high)
        code[j] = nearest
        is_outlier[j] = unclipped != nearest
        value = nearest * step[j]
        outlier[j] = torch.where(is_outlier[j], best - value, 0).clamp(-FLOAT16_MAX, FLOAT16_MAX)
        return value + outlier[j]

    sweep(columns, unit_factor(narrowed(factor, target)), choose)
    return code.T.contiguous(), outlier.T, is_outlier.T

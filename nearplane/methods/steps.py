"""Choosing a step for every group of columns: apart from rounding, and before it."""

import torch
from jaxtyping import Float
from torch import Tensor

from nearplane import codes
from nearplane.types import NearplaneError

SHRINKS = 100  # step candidates between the full range and a fifth of it
NORM = 2.4  # GPTQ's habit


def groups_of(
    weight: Float[Tensor, "rows columns"], group_size: int
) -> Float[Tensor, "rows groups group_size"]:
    """Return the columns cut into groups, the last one padded with zeros."""
    short = -weight.shape[1] % group_size
    return torch.nn.functional.pad(weight, (0, short)).unflatten(1, (-1, group_size))


def mse_steps(
    weight: Float[Tensor, "rows columns"], bits: int, group_size: int
) -> Float[Tensor, "rows groups"]:
    """Return the step of every group that minimises Σ |w − s·clip(round(w / s))|^2.4, in 16 bits.

    Candidates are the step that spans the group's largest magnitude, times 1.0 down to 0.2
    [Frantar23, code].
    """
    low, high = code_range(bits)
    grouped = groups_of(weight, group_size)
    full = grouped.abs().amax(2, keepdim=True) * 2 / (high - low)
    full[full == 0] = 1
    best = torch.full_like(full[..., 0], torch.inf)
    chosen = full[..., 0].clone()
    for index in range(SHRINKS):
        step = full * (1 - 0.8 * index / SHRINKS)
        error = (grouped / step).round_().clamp_(low, high).mul_(step).sub_(grouped)
        cost = error.abs_().pow_(NORM).sum(2)
        better = cost < best
        best[better] = cost[better]
        chosen[better] = step[..., 0][better]
    return codes.round_step(chosen)


def code_range(bits: int) -> tuple[int, int]:
    """Return the lowest and highest code of `bits` bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def check_group_size(group_size: int, columns: int) -> int:
    """Return the group size, at most a whole row; raises NearplaneError below 1."""
    if group_size < 1:
        raise NearplaneError(f"group_size must be at least 1, not {group_size}")
    return min(group_size, columns)

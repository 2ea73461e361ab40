"""Choosing a step for every group of columns: apart from rounding, and before it."""

from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float
from torch import Tensor

from nearplane import codes
from nearplane.lattice import one_thread
from nearplane.rows import by_rows
from nearplane.types import NearplaneError

SHRINKS = 100  # step candidates between the full range and a fifth of it
NORM = 2.4  # GPTQ's habit
CACHED = 150_000  # numbers worked on at a time, few enough to stay in a core's cache


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

    def steps(rows: slice) -> tuple[Tensor]:
        parts = groups_of(weight[rows], group_size).split(max(1, CACHED // weight.shape[1]))
        # a part for every thread, instead of many threads that meet after every operation
        with one_thread() as threads, ThreadPoolExecutor(threads) as pool:
            return (torch.cat(list(pool.map(lambda p: _least_error(p, code_range(bits)), parts))),)

    return codes.round_step(by_rows(steps, len(weight))[0])


def _least_error(
    grouped: Float[Tensor, "rows groups group_size"], limits: tuple[int, int]
) -> Float[Tensor, "rows groups"]:
    """Return the best candidate of every group, in float32."""
    full = grouped.abs().amax(2, keepdim=True) * 2 / (limits[1] - limits[0])
    full[full == 0] = 1
    unit = grouped / full
    best, shrink = torch.full_like(full, torch.inf), torch.ones_like(full)
    error = torch.empty_like(unit)
    for index in range(SHRINKS):
        factor = 1 - 0.8 * index / SHRINKS
        torch.mul(unit, 1 / factor, out=error)
        error.round_().clamp_(*limits).mul_(factor).sub_(unit).abs_()
        # x^NORM; a power costs twice a logarithm and an exponential
        cost = error.log_().mul_(NORM).exp_().sum(2, keepdim=True)
        shrink.masked_fill_(cost < best, factor)
        torch.minimum(best, cost, out=best)
    return (full * shrink)[..., 0]


def code_range(bits: int) -> tuple[int, int]:
    """Return the lowest and highest code of `bits` bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def check_group_size(group_size: int, columns: int) -> int:
    """Return the group size, at most a whole row; raises NearplaneError below 1."""
    if group_size < 1:
        raise NearplaneError(f"group_size must be at least 1, not {group_size}")
    return min(group_size, columns)

"""Choosing a step for every group of columns, before any weight is rounded."""

import torch
from jaxtyping import Float
from torch import Tensor

from nearplane import codes
from nearplane.rows import AT_ONCE, by_rows, rows_at_once
from nearplane.types import NearplaneError

SHRINKS = 100  # candidates for a step, from the full range down to LEAST_SHRINK of it
LEAST_SHRINK = 0.2
NORM = 2.4  # exponent of the error, as in GPTQ's code
# steps below it would be denormal, and their reciprocals infinite, after any shrinking
SMALLEST = 5 * torch.finfo(torch.float32).tiny
# of float16: with the 8 bits that bfloat16 has, and of all
SMALLEST_FLOAT16, LARGEST_FLOAT16 = 2.0**-17, 65504.0
FINEST = 2.0**-24  # the least positive number of float16
CACHED = 300_000  # numbers worked on at a time, so few that they stay in a core's cache


def numbers_at_once(device: torch.device) -> int:
    """Return how many numbers to work on at a time; an accelerator is kept busy by more of them."""
    return CACHED if device.type == "cpu" else AT_ONCE


def groups_of(
    weight: Float[Tensor, "rows columns"], group_size: int
) -> Float[Tensor, "rows groups group_size"]:
    """Return the weight split into groups of columns, the last one padded with zeros."""
    padding = -weight.shape[1] % group_size
    return torch.nn.functional.pad(weight, (0, padding)).unflatten(1, (-1, group_size))


def mse_steps(
    weight: Float[Tensor, "rows columns"],
    bits: int,
    group_size: int,
    importance: Float[Tensor, " columns"] | None = None,
) -> Float[Tensor, "rows groups"]:
    """Return the step of every group that minimises Σ |w − s·clip(round(w / s))|^2.4.

    With `importance` the sum is Σ importance · (w − s·clip(round(w / s)))². Candidates are the step
    at which the codes just span the group's largest magnitude, times 1.0 down to 0.2 [Frantar23,
    code]. Steps are rounded to the 16 bits that a record stores. Groups whose step would be less
    than SMALLEST get step 1, and so zeros.
    """
    wide = None if importance is None else groups_of(importance[None].float(), group_size)

    def steps(rows: slice) -> tuple[Tensor]:
        at_once = numbers_at_once(weight.device) // weight.shape[1]
        parts = groups_of(weight[rows], group_size).split(max(1, at_once))
        return (torch.cat([_least_error(part, code_range(bits), wide) for part in parts]),)

    at_once = rows_at_once(weight.shape[1], weight.device)
    return in_float16(by_rows(steps, len(weight), at_once=at_once)[0])


def in_float16(step: Float[Tensor, "rows groups"]) -> Float[Tensor, "rows groups"]:
    """Return steps in float16, where it holds the largest as exactly as bfloat16 would.

    Other programs' formats have float16 only. Small steps are those of small weights: they are
    multiples of float16's least number, and may err by half of it. Else see `codes.round_step`.
    """
    if not SMALLEST_FLOAT16 <= float(step.abs().max()) <= LARGEST_FLOAT16:
        return codes.round_step(step)
    least = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
    return step.abs().clamp_min(least).copysign(step).half().float()


def nonzero(step: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return steps of which none is less than the finest of float16."""
    return torch.where(step.abs() < FINEST, FINEST, step)


def _least_error(
    grouped: Float[Tensor, "rows groups group_size"],
    limits: tuple[int, int],
    importance: Float[Tensor, "1 groups group_size"] | None = None,
) -> Float[Tensor, "rows groups"]:
    """Return the best candidate of every group, in float32."""
    full = grouped.abs().amax(2, keepdim=True) * 2 / (limits[1] - limits[0])
    # weights as small as this are zero
    full[full < SMALLEST] = 1
    unit = grouped / full
    best, shrink = torch.full_like(full, torch.inf), torch.ones_like(full)
    error = torch.empty_like(unit)
    for index in range(SHRINKS):
        factor = 1 - (1 - LEAST_SHRINK) * index / SHRINKS
        torch.mul(unit, 1 / factor, out=error)
        error.round_().clamp_(*limits).mul_(factor).sub_(unit).abs_()
        if importance is None:
            # error^NORM; torch's power takes twice as long as a logarithm and an exponential
            error.log_().mul_(NORM).exp_()
        else:
            error.square_().mul_(importance)
        cost = error.sum(2, keepdim=True)
        shrink.masked_fill_(cost < best, factor)
        torch.minimum(best, cost, out=best)
    return (full * shrink)[..., 0]


def code_range(bits: int) -> tuple[int, int]:
    """Return the lowest and highest code of `bits` bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def check_group_size(group_size: int, columns: int) -> int:
    """Return the group size, at most `columns`; raise NearplaneError if it is below 1."""
    if group_size < 1:
        raise NearplaneError(f"group_size must be at least 1, not {group_size}")
    return min(group_size, columns)

"""Steps, minima and levels of the block types of GGUF files (`codes.block_types`) for a weight."""

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from nearplane.codes.block_types import GRIDS, LARGEST, MIXED, BlockGrid
from nearplane.lattice import Levels
from nearplane.methods.block_minima import lines
from nearplane.methods.steps import groups_of, nonzero, numbers_at_once
from nearplane.rows import by_rows, rows_at_once

SHRINKS = 48  # candidates for a step: the largest weight over the largest level, times 1.1 to 0.35
MOST, LEAST = 1.1, 0.35
TINY = torch.finfo(torch.float32).tiny
# of a matrix, between which steps are numbers of float16
SMALLEST_WEIGHT, LARGEST_WEIGHT = 2.0**-10, 2.0**14
DRAWN = 4096  # numbers by which a type's error is measured


def levels_of(grid: BlockGrid, like: Tensor) -> Levels:
    """Return the levels of a type, for numbers like those of a tensor.

    Of a type with minima, for numbers that the minimum was added to.
    """
    if grid.minima:
        return Levels(0, grid.highest)
    return Levels.of(grid.levels, like) if grid.levels else Levels(grid.low, grid.high)


def block_steps(
    grid: BlockGrid, weight: Float[Tensor, "rows columns"], importance: Float[Tensor, " columns"]
) -> tuple[Float[Tensor, "rows groups"], Float[Tensor, "rows groups"] | None]:
    """Return steps that the type holds and that make Σ importance · error² small, and minima.

    Each group's best step first, by candidates; then its best multiple of the block's factor.
    Matrices that float16 has no steps for get steps of as many bits, which no file holds.
    The minima are None for a type that has none.
    """
    wide = groups_of(importance[None].to(weight.dtype), grid.group)
    wide = wide / wide.mean().clamp_min(TINY)
    largest = float(weight.abs().max())
    usual = SMALLEST_WEIGHT <= largest <= LARGEST_WEIGHT or not largest
    power = 1.0 if usual else 2.0 ** math.floor(math.log2(largest))

    columns, levels = weight.shape[1], levels_of(grid, weight)

    def some(rows: slice) -> tuple[Tensor, ...]:
        grouped = groups_of(weight[rows] / power, grid.group)
        parts = grouped.split(max(1, numbers_at_once(weight.device) // columns))
        found = zip(*(lines_of(grid, levels, part, wide) for part in parts), strict=True)
        return tuple(torch.cat(each) * power for each in found)

    step, *minimum = by_rows(some, len(weight), at_once=rows_at_once(columns, weight.device))
    return step, minimum[0] if minimum else None


def lines_of(
    grid: BlockGrid,
    levels: Levels,
    grouped: Float[Tensor, "rows groups group"],
    importance: Float[Tensor, "1 groups group"],
) -> tuple[Float[Tensor, "rows groups"], ...]:
    """Return the steps of some rows' groups, and the minima if the type has any, in float32."""
    if grid.minima:
        return lines(grid, grouped, importance)
    return (steps_of(grid, levels, grouped, importance),)


def steps_of(
    grid: BlockGrid,
    levels: Levels,
    grouped: Float[Tensor, "rows groups group"],
    importance: Float[Tensor, "1 groups group"],
) -> Float[Tensor, "rows groups"]:
    """Return the steps of some rows' groups, in float32."""
    best = free_steps(grid, levels, grouped, importance).clamp(-LARGEST, LARGEST)
    if not grid.multiples:
        return nonzero(best.half().float())
    each = grid.block // grid.group
    padded = torch.nn.functional.pad(best, (0, -best.shape[1] % each)).unflatten(1, (-1, each))
    factor = padded.abs().amax(2, keepdim=True) / grid.multiples
    factor = nonzero(factor.half().float()).expand_as(padded).flatten(1)[:, : best.shape[1]]
    found, error = best, torch.full_like(best, torch.inf)
    whole = (best / factor).abs().round()
    for apart in (-1, 0, 1):
        multiple = (whole + apart).clamp(1, grid.multiples)
        step = factor * multiple * torch.where(best < 0, -1, 1)
        own = error_of(levels, grouped, step, importance)
        found, error = torch.where(own < error, step, found), torch.minimum(own, error)
    return found


def free_steps(
    grid: BlockGrid,
    levels: Levels,
    grouped: Float[Tensor, "rows groups group"],
    importance: Float[Tensor, "1 groups group"],
) -> Float[Tensor, "rows groups"]:
    """Return the best of SHRINKS steps of each group, and of both signs if they may differ."""
    full = grouped.abs().amax(2) / max(-grid.low, grid.high)
    found, error = full, torch.full_like(full, torch.inf)
    # the shorter side of levels would be the one that is needed
    for sign in (1, -1) if grid.signed and -grid.low != grid.high else (1,):
        for index in range(SHRINKS):
            step = full * (sign * (MOST - (MOST - LEAST) * index / (SHRINKS - 1)))
            own = error_of(levels, grouped, step, importance)
            found, error = torch.where(own < error, step, found), torch.minimum(own, error)
    return found


def error_of(
    levels: Levels,
    grouped: Float[Tensor, "rows groups group"],
    step: Float[Tensor, "rows groups"],
    importance: Float[Tensor, "1 groups group"],
) -> Float[Tensor, "rows groups"]:
    """Return Σ importance · (weight − step · nearest level)² of each group."""
    wide = nonzero(step)[..., None]
    level = levels.nearest(grouped / wide)
    return level.mul_(wide).sub_(grouped).square_().mul_(importance).sum(2)


@cache
def effective_bits(grid: BlockGrid) -> float:
    """Return the rate at which entropy-coded integers would err as this type does.

    Of DRAWN Gaussian numbers: error² = (π e / 6) 4^(−bits) for integers with one step.
    """
    drawn = torch.randn(4, DRAWN // 4, generator=torch.Generator().manual_seed(0))
    found = block_steps(grid, drawn, torch.ones(drawn.shape[1]))
    step, minimum = (
        torch.zeros(1) if part is None else part.repeat_interleave(grid.group, 1) for part in found
    )
    raised = drawn + minimum
    level = levels_of(grid, drawn).nearest(raised / step)
    error = float((level * step - raised).square().mean())
    return math.log(math.pi * math.e / 6 / error, 4)


def mixed_grids(columns: int) -> list[BlockGrid]:
    """Return the types that a mixture may have in rows of so many columns, the smallest first.

    None of 32 columns where one of 256 has no more bits.
    """
    found = [GRIDS[name] for name in MIXED if GRIDS[name].fits(columns)]
    found = found or [GRIDS["IQ4_NL"], GRIDS["Q5_0"], GRIDS["Q5_1"], GRIDS["Q8_0"]]
    best: list[BlockGrid] = []
    for grid in found:
        if not best or effective_bits(grid) > effective_bits(best[-1]):
            best.append(grid)
    return best

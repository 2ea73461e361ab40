"""The block types of GGUF files, as the sets of values that a group of columns may be rounded to.

value = step · level, where a level is an integer of the type's. Steps of simple types are numbers
of float16. Types of 256 columns have one such number for 8 or 16 groups, whose steps are multiples
of it.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from nearplane.lattice.nearest_plane import nearest_integer
from nearplane.methods.steps import CACHED, groups_of
from nearplane.rows import by_rows

# of IQ4_NL and IQ4_XS: close together near zero
UNEVEN = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
SHRINKS = 48  # candidates for a step: the largest weight over the largest level, times 1.1 to 0.35
MOST, LEAST = 1.1, 0.35
FINEST = 2.0**-24  # the least positive number of float16
LARGEST = 4094.0  # a step whose multiple by 16, the minimum of a block, float16 still holds
TINY = torch.finfo(torch.float32).tiny
# of a matrix, between which steps are numbers of float16
SMALLEST_WEIGHT, LARGEST_WEIGHT = 2.0**-10, 2.0**14
DRAWN = 4096  # numbers by which a type's error is measured


@dataclass(frozen=True)
class BlockGrid:
    """What a block type can hold exactly.

    - `low`, `high`: the levels, all integers between them; or `levels`, where those are uneven.
    - `group`: columns with one step. `block`: columns whose steps have one factor in float16.
    - `multiples`: steps are 1 to so many times that factor; 0 where it is the step itself.
    - `signed`: whether each step may be negative, so that the longer side is where it is needed.
    - `bits`: of a weight in the file, steps included.
    """

    name: str
    low: int
    high: int
    group: int
    block: int
    bits: float
    multiples: int = 0
    signed: bool = True
    levels: tuple[int, ...] = ()

    def fits(self, columns: int) -> bool:
        """Whether the type's blocks divide a row."""
        return columns % self.block == 0

    def nearest(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the nearest level of each number; `x` may be overwritten."""
        if not self.levels:
            return nearest_integer(x, self.low, self.high)
        levels = torch.tensor(self.levels, dtype=x.dtype, device=x.device)
        return levels[torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)]

    def steps(
        self, weight: Float[Tensor, "rows columns"], importance: Float[Tensor, " columns"]
    ) -> Float[Tensor, "rows groups"]:
        """Return steps that the type holds and that make Σ importance · error² small.

        Each group's best step first, by candidates; then its best multiple of the block's factor.
        Matrices that float16 has no steps for get steps of as many bits, which no file holds.
        """
        wide = groups_of(importance[None].to(weight.dtype), self.group)
        wide = wide / wide.mean().clamp_min(TINY)
        largest = float(weight.abs().max())
        usual = SMALLEST_WEIGHT <= largest <= LARGEST_WEIGHT or not largest
        power = 1.0 if usual else 2.0 ** math.floor(math.log2(largest))

        def some(rows: slice) -> tuple[Tensor]:
            grouped = groups_of(weight[rows] / power, self.group)
            parts = grouped.split(max(1, CACHED // weight.shape[1]))
            return (torch.cat([self.multiplied(part, wide) for part in parts]),)

        return by_rows(some, len(weight))[0] * power

    def multiplied(
        self,
        grouped: Float[Tensor, "rows groups group"],
        importance: Float[Tensor, "1 groups group"],
    ) -> Float[Tensor, "rows groups"]:
        """Return the steps of some rows' groups, in float32."""
        best = self.free_steps(grouped, importance).clamp(-LARGEST, LARGEST)
        if not self.multiples:
            return nonzero(best.half().float())
        each = self.block // self.group
        padded = torch.nn.functional.pad(best, (0, -best.shape[1] % each)).unflatten(1, (-1, each))
        factor = padded.abs().amax(2, keepdim=True) / self.multiples
        factor = nonzero(factor.half().float()).expand_as(padded).flatten(1)[:, : best.shape[1]]
        found, error = best, torch.full_like(best, torch.inf)
        whole = (best / factor).abs().round()
        for apart in (-1, 0, 1):
            multiple = (whole + apart).clamp(1, self.multiples)
            step = factor * multiple * torch.where(best < 0, -1, 1)
            own = self.error(grouped, step, importance)
            found, error = torch.where(own < error, step, found), torch.minimum(own, error)
        return found

    def free_steps(
        self,
        grouped: Float[Tensor, "rows groups group"],
        importance: Float[Tensor, "1 groups group"],
    ) -> Float[Tensor, "rows groups"]:
        """Return the best of SHRINKS steps of each group, and of both signs if they may differ."""
        full = grouped.abs().amax(2) / max(-self.low, self.high)
        found, error = full, torch.full_like(full, torch.inf)
        # the shorter side of levels would be the one that is needed
        for sign in (1, -1) if self.signed and -self.low != self.high else (1,):
            for index in range(SHRINKS):
                step = full * (sign * (MOST - (MOST - LEAST) * index / (SHRINKS - 1)))
                own = self.error(grouped, step, importance)
                found, error = torch.where(own < error, step, found), torch.minimum(own, error)
        return found

    def error(
        self,
        grouped: Float[Tensor, "rows groups group"],
        step: Float[Tensor, "rows groups"],
        importance: Float[Tensor, "1 groups group"],
    ) -> Float[Tensor, "rows groups"]:
        """Return Σ importance · (weight − step · nearest level)² of each group."""
        wide = nonzero(step)[..., None]
        level = self.nearest(grouped / wide)
        return level.mul_(wide).sub_(grouped).square_().mul_(importance).sum(2)

    @cache  # noqa: B019 - there are as many as types
    def effective_bits(self) -> float:
        """Return the rate at which entropy-coded integers would err as this type does.

        Of DRAWN Gaussian numbers: error² = (π e / 6) 4^(−bits) for integers with one step.
        """
        drawn = torch.randn(4, DRAWN // 4, generator=torch.Generator().manual_seed(0))
        step = self.steps(drawn, torch.ones(drawn.shape[1])).repeat_interleave(self.group, 1)
        error = float((self.nearest(drawn / step) * step - drawn).square().mean())
        return math.log(math.pi * math.e / 6 / error, 4)


def nonzero(step: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return steps of which none is less than the finest."""
    return torch.where(step.abs() < FINEST, FINEST, step)


GRIDS = {
    grid.name: grid
    for grid in (
        BlockGrid("Q3_K", -4, 3, 16, 256, 3.4375, 31),
        BlockGrid("IQ4_XS", -127, 113, 32, 256, 4.25, 31, levels=UNEVEN),
        BlockGrid("Q4_K", -8, 7, 32, 256, 4.5, 63, signed=False),
        BlockGrid("IQ4_NL", -127, 113, 32, 32, 4.5, levels=UNEVEN),
        BlockGrid("Q4_0", -8, 7, 32, 32, 4.5),
        BlockGrid("Q5_K", -16, 15, 32, 256, 5.5, 63, signed=False),
        BlockGrid("Q5_0", -16, 15, 32, 32, 5.5),
        BlockGrid("Q6_K", -32, 31, 16, 256, 6.5625, 127),
        BlockGrid("Q8_0", -128, 127, 32, 32, 8.5),
    )
}
# what llama.cpp takes where 256 does not divide a row
INSTEAD = {"Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_0", "Q6_K": "Q8_0"}
# of types with the same bits, those that err least
MIXED = ("Q3_K", "IQ4_XS", "IQ4_NL", "Q5_K", "Q5_0", "Q6_K", "Q8_0")


def grid_of(name: str, columns: int) -> BlockGrid:
    """Return a type, or what takes its place in rows of so many columns."""
    grid = GRIDS[name]
    return grid if grid.fits(columns) or name not in INSTEAD else GRIDS[INSTEAD[name]]


def mixed_grids(columns: int) -> list[BlockGrid]:
    """Return the types that a mixture may have in rows of so many columns, the smallest first.

    None of 32 columns where one of 256 has no more bits.
    """
    found = [GRIDS[name] for name in MIXED if GRIDS[name].fits(columns)]
    found = found or [GRIDS["IQ4_NL"], GRIDS["Q5_0"], GRIDS["Q8_0"]]
    best: list[BlockGrid] = []
    for grid in found:
        if not best or grid.effective_bits() > best[-1].effective_bits():
            best.append(grid)
    return best

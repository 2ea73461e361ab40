"""Steps and minima of the block types of GGUF files that have both.

value = step · integer − minimum. Of Q4_1 and Q5_1, both are numbers of float16. Of Q2_K, Q4_K and
Q5_K they are multiples of two such numbers a block, and no minimum is negative.
"""

import itertools

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nearplane.codes.block_types import LARGEST, BlockGrid
from nearplane.lattice.nearest_plane import nearest_integer
from nearplane.methods.steps import LARGEST_FLOAT16, nonzero

# candidates for a step: a group's range over its highest integer, FEWER and up to MORE of it
CANDIDATES, FEWER, MORE = 12, -0.7, 0.9
FITS = 3  # times that integers are chosen anew, then what fits them best
SINGULAR = 1e-6  # of a determinant, beside its first term
TINY = torch.finfo(torch.float32).tiny

Grouped = Float[Tensor, "rows groups group"]
Importance = Float[Tensor, "1 groups group"]
Line = tuple[Tensor, Tensor]  # the step and the minimum of every group


def lines(grid: BlockGrid, grouped: Grouped, importance: Importance) -> Line:
    """Return steps and minima that a type holds and that make Σ importance · error² small.

    - `importance`: of each column, in one row that stands for all.
    """
    problem = Problem(grid, grouped, importance)
    found = problem.free_lines()
    if grid.multiples:
        return problem.multiples(found)
    most = LARGEST_FLOAT16
    step, minimum = (part.clamp(-most, most).half().float() for part in found)
    return nonzero(step), minimum


class Problem:
    """Some rows' groups, and what errors in each column count."""

    def __init__(self, grid: BlockGrid, grouped: Grouped, importance: Importance):
        self.grid, self.grouped, self.importance = grid, grouped, importance

    def free_lines(self) -> Line:
        """Return the step and the minimum of each group, whatever the type's blocks hold.

        Every candidate step gives integers, and those a step and a minimum that fit them best.
        """
        low, high = self.grouped.amin(2), self.grouped.amax(2)
        low = low.clamp_max(0) if self.grid.multiples else low
        width, found = nonzero(high - low), (nonzero(high - low) / self.grid.highest, -low)
        best = self.error(found)
        for index in range(CANDIDATES):
            integers = self.grid.highest + FEWER + (MORE - FEWER) * index / (CANDIDATES - 1)
            found, best = self.better((found, best), self.fitted((width / integers, -low)))
        for _ in range(FITS):
            found, best = self.better((found, best), self.fitted(found))
        return found

    def multiples(self, found: Line) -> Line:
        """Return steps and minima that are multiples of a block's two factors.

        In turns: the factors that fit a block best, and for every group the best of neighbouring
        multiples.
        """
        most, step, minimum = self.grid.multiples, *map(self.in_blocks, found)
        factors = largest(step, most), largest(minimum, most)
        whole = (step / factors[0]).round(), (minimum / factors[1]).round()
        whole, best = self.neighbours(factors, whole)
        for _ in range(FITS):
            own = self.fitted_factors(factors, whole)
            near, error = self.neighbours(own, whole)
            less = error.sum(2, keepdim=True) < best.sum(2, keepdim=True)
            factors, whole = chosen(less, own, factors), chosen(less, near, whole)
            best = torch.where(less, error, best)
        return times(factors, whole)

    def neighbours(self, factors: Line, whole: Line) -> tuple[Line, Tensor]:
        """Return the multiples with the least error among `whole` and those beside it."""
        most = self.grid.multiples
        found, best = whole, torch.full_like(whole[0], torch.inf)
        for step, minimum in itertools.product((0, -1, 1), repeat=2):
            own = (whole[0] + step).clamp(1, most), (whole[1] + minimum).clamp(0, most)
            error = self.in_blocks(self.error(times(factors, own)))
            found, best = chosen(error < best, own, found), torch.minimum(error, best)
        return found, best

    def fitted_factors(self, factors: Line, whole: Line) -> Line:
        """Return the two factors of every block that fit its multiples and integers best.

        Least squares of x = d · a − m · b, where a is multiple times integer, b the other multiple.
        """
        level = self.level(times(factors, whole))
        a, b = (part.flatten(1)[..., None] for part in whole)
        a, b, x, w = (
            self.whole_blocks(part) for part in (a * level, b, self.grouped, self.importance)
        )
        aa, ab, bb, ax, bx = (
            (w * p * q).sum(2, keepdim=True) for p, q in ((a, a), (a, b), (b, b), (a, x), (b, x))
        )
        determinant = aa * bb - ab * ab
        fits = determinant > SINGULAR * aa * bb
        determinant = torch.where(fits, determinant, 1)
        step, minimum = (ax * bb - bx * ab) / determinant, (ax * ab - bx * aa) / determinant
        fits &= (step > 0) & (minimum >= 0)
        return chosen(fits, (in_float16(step), in_float16(minimum)), factors)

    def fitted(self, line: Line) -> Line:
        """Return the step and the minimum that fit a line's integers best, by least squares."""
        level, total = self.level(line), self.importance.sum(2)
        weighted = self.importance * level
        x, q = (self.importance * self.grouped).sum(2), weighted.sum(2)
        qq, qx = (weighted * level).sum(2), (weighted * self.grouped).sum(2)
        determinant = total * qq - q * q
        fits = determinant > SINGULAR * total * qq
        step = (total * qx - q * x) / torch.where(fits, determinant, 1)
        minimum = (step * q - x) / total.clamp_min(TINY)
        if self.grid.multiples:
            step = torch.where(minimum < 0, qx / qq.clamp_min(TINY), step)
            minimum = minimum.clamp_min(0)
        return chosen(fits & (step > 0), (step, minimum), line)

    def level(self, line: Line) -> Grouped:
        """Return the integers that a line rounds to."""
        step, minimum = (part[..., None] for part in line)
        return nearest_integer((self.grouped + minimum) / nonzero(step), 0, self.grid.highest)

    def error(self, line: Line) -> Float[Tensor, "rows groups"]:
        """Return Σ importance · (step · integer − minimum − weight)² of each group."""
        step, minimum = (part[..., None] for part in line)
        step, raised = nonzero(step), self.grouped + minimum
        level = nearest_integer(raised / step, 0, self.grid.highest)
        return level.mul_(step).sub_(raised).square_().mul_(self.importance).sum(2)

    def better(self, found: tuple[Line, Tensor], own: Line) -> tuple[Line, Tensor]:
        """Return for every group the line with less error, and that."""
        error = self.error(own)
        return chosen(error < found[1], own, found[0]), torch.minimum(error, found[1])

    def in_blocks(self, each: Float[Tensor, "rows groups"]) -> Float[Tensor, "rows blocks each"]:
        """Return numbers of groups by their block."""
        return each.unflatten(1, (-1, self.grid.block // self.grid.group))

    def whole_blocks(self, each: Tensor) -> Float[Tensor, "rows blocks columns"]:
        """Return numbers of groups or columns, one for each column of a block."""
        wide = each.expand(-1, -1, self.grid.group)
        return wide.flatten(1).unflatten(1, (-1, self.grid.block))


def times(factors: Line, whole: Line) -> Line:
    """Return the step and the minimum of every group from factors of blocks and multiples."""
    step, minimum = (by * each for by, each in zip(factors, whole, strict=True))
    return step.flatten(1), minimum.flatten(1)


def largest(each: Tensor, most: int) -> Tensor:
    """Return the factors of blocks of which the largest number of each is the largest multiple."""
    return in_float16(each.amax(2, keepdim=True) / most)


def in_float16(factor: Tensor) -> Tensor:
    """Return factors of blocks as a file holds them."""
    return nonzero(factor.clamp(0, LARGEST).half().float())


def chosen(where: Bool[Tensor, "..."], one: Line, other: Line) -> Line:
    """Return one line where a condition holds, else the other."""
    return torch.where(where, one[0], other[0]), torch.where(where, one[1], other[1])

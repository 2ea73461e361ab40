"""Babai's nearest plane algorithm: a readable version and a fast blocked one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from nearplane.lattice.float64 import narrowed
from nearplane.op import Op
from nearplane.rows import TILE, by_rows, rows_at_once, some_rows

BLOCK_ROWS = 128  # rows of a factor that are scaled at a time
LEAF = 32  # columns rounded one after the other between two matrix products


def nearest_integer(x: Float[Tensor, "..."], low: int | None, high: int | None) -> Tensor:
    """Return x rounded half to even and clipped to low .. high; every method rounds with it."""
    rounded = torch.round(x)
    return rounded if low is None and high is None else rounded.clamp_(low, high)


@dataclass(frozen=True)
class Levels:
    """The integers that a code may be: low .. high, or a few between them.

    - `values`: those few in ascending order, and `middles` between neighbours; both on the device
      and in the type of what is rounded.
    """

    low: int
    high: int
    values: Float[Tensor, " levels"] | None = None
    middles: Float[Tensor, " levels_less_one"] | None = None

    @classmethod
    def of(cls, values: Sequence[int], like: Tensor) -> "Levels":
        """Return levels that need not be neighbours, for numbers like those of a tensor."""
        levels = torch.tensor(values, dtype=like.dtype, device=like.device)
        return cls(values[0], values[-1], levels, (levels[1:] + levels[:-1]) / 2)

    def nearest(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the nearest level of each number; `x` may be overwritten."""
        if self.values is None or self.middles is None:
            return nearest_integer(x, self.low, self.high)
        return self.values[torch.bucketize(x, self.middles)]


def nearest_plane_plain(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "#rows #n"],
    low: int | None = None,
    high: int | None = None,
) -> Int32[Tensor, "rows n"]:
    """Return what `nearest_plane` returns; slower, and written to be read.

    Cost: rows · n² / 2 multiply-adds, none of them in matrix products.
    """
    step = step.expand_as(target)
    code = torch.empty_like(target, dtype=torch.int32)
    error = torch.zeros_like(target)
    for j in reversed(range(target.shape[1])):
        # errors already made in the columns to the right change the best value of column j
        pull = error[:, j + 1 :] @ (factor[j, j + 1 :] / factor[j, j])
        nearest = nearest_integer((target[:, j] + pull) / step[:, j], low, high)
        code[:, j] = nearest.to(torch.int32)
        error[:, j] = target[:, j] - step[:, j] * nearest
    return code


@Op
def nearest_plane(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "#rows #n"],
    low: int | None = None,
    high: int | None = None,
) -> Int32[Tensor, "rows n"]:
    """Round every row of `target` to a nearby lattice point, one coordinate at a time.

    Greedily minimises ‖(target − step·code) @ factor.T‖², last column first [Babai86]. On
    columns order.flip(0) it returns the codes of GPTQ [Frantar23, Alg. 1], as [Chen26, Thm. 4]
    proves.

    - `target`: the weight to quantize; each row is its own closest-vector problem.
    - `factor`: upper triangular R with RᵀR = hessian; no diagonal entry is zero.
    - `step`: non-zero, of either sign; one for each element, row or column, or one for all.
    - `low`, `high`: admissible codes. With either set, `bound` no longer holds.

    Cost: rows · n² / 2 multiply-adds, of which all but a fraction LEAF / n are matrix products.
    """
    unit = unit_factor(narrowed(scaled_by_columns(factor, step, target.dtype), target))
    limits = low, high

    def rounded_tile(tile: Tensor, own: Tensor) -> Tensor:
        if 1 in step.shape:
            return round_with_unit_step(tile, unit, own, limits)
        own = own.to(tile.dtype).expand_as(tile)
        return round_with_element_steps(tile, unit, own, lambda x: nearest_integer(x, *limits))

    def rounded(rows: slice) -> tuple[Tensor]:
        parts = tiles(target[rows], some_rows(step, rows))
        return (torch.cat([rounded_tile(*part) for part in parts]),)

    return by_rows(rounded, len(target), at_once=rows_at_once(target.shape[1], target.device))[0]


@Op
def nearest_plane_among(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "rows n"],
    levels: Levels,
) -> Int32[Tensor, "rows n"]:
    """Round every row of `target` as `nearest_plane` does, to levels that need not be neighbours.

    - `levels`: in the type of `target`.
    """
    unit = unit_factor(narrowed(factor, target))

    def some(rows: slice) -> tuple[Tensor]:
        return (round_with_element_steps(target[rows], unit, step[rows], levels.nearest),)

    return by_rows(some, len(target), at_once=rows_at_once(target.shape[1], target.device))[0]


def tiles(
    target: Float[Tensor, "rows n"], step: Float[Tensor, "#rows #n"]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the target TILE rows at a time, with the steps of those rows; on a CPU only."""
    size = TILE if target.device.type == "cpu" else max(len(target), 1)
    for first in range(0, max(len(target), 1), size):
        rows = slice(first, first + size)
        yield target[rows], some_rows(step, rows)


def round_with_element_steps(
    target: Float[Tensor, "rows n"],
    unit: Float[Tensor, "n n"],
    step: Float[Tensor, "rows n"],
    nearest: Callable[[Tensor], Tensor],
) -> Int32[Tensor, "rows n"]:
    """Return the codes of a target whose elements each have their own step.

    - `unit`: from `unit_factor`. `nearest`: returns the admissible code nearest to each number.
    """
    columns = target.T.contiguous()
    steps = step.T.contiguous().unbind()
    code = torch.empty_like(columns)
    codes = code.unbind()

    def choose(j: int, best: Tensor) -> Tensor:
        codes[j].copy_(nearest(best / steps[j]))
        return codes[j] * steps[j]

    sweep(columns, unit, choose)
    return code.T.to(torch.int32, memory_format=torch.contiguous_format)


def round_with_unit_step(
    target: Float[Tensor, "rows n"],
    unit: Float[Tensor, "n n"],
    step: Float[Tensor, "#rows #n"],
    limits: tuple[int | None, int | None],
) -> Int32[Tensor, "rows n"]:
    """Return the codes of a target whose step varies along one axis only.

    Rounding target / step with step 1, on the factor R · diag(step) for column steps, gives the
    same codes, and takes three operations for each column instead of seven.

    - `unit`: from `unit_factor`, of that factor.
    """
    columns = (target / step.to(target.dtype)).T.contiguous()
    code = torch.empty_like(columns)
    codes = code.unbind()

    def choose(j: int, best: Tensor) -> Tensor:
        nearest = torch.round(best, out=codes[j])
        return nearest if limits == (None, None) else nearest.clamp_(*limits)

    sweep(columns, unit, choose)
    return code.T.to(torch.int32, memory_format=torch.contiguous_format)


def scaled_by_columns(
    factor: Float[Tensor, "n n"], step: Float[Tensor, "#rows #n"], dtype: torch.dtype
) -> Float[Tensor, "n n"]:
    """Return the factor in `dtype`, times the steps if they vary along the columns only."""
    by_columns = 1 in step.shape and step.shape[1] > 1
    return scaled_factor(factor, step, dtype) if by_columns else factor.to(dtype)


def scaled_factor(
    factor: Float[Tensor, "n n"], step: Float[Tensor, "1 n"], dtype: torch.dtype
) -> Float[Tensor, "n n"]:
    """Return factor · diag(step) in `dtype` where the step is, without a full copy in a wider type.

    It is computed where the factor is.
    """
    scaled = torch.empty(factor.shape, dtype=dtype, device=factor.device)
    own = step.to(factor.device)
    rows = BLOCK_ROWS if factor.device.type == "cpu" else rows_at_once(len(factor), factor.device)
    for block, source in zip(scaled.split(rows), factor.split(rows), strict=True):
        block.copy_(source * own)
    return scaled.to(step.device)


def unit_factor(factor: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Return R_jk / R_jj above the diagonal, 0 elsewhere: what one error adds to other columns."""
    return (factor / factor.diagonal()[:, None]).triu_(1)


def sweep(
    target: Float[Tensor, "n rows"],
    unit: Float[Tensor, "n n"],
    choose: Callable[[int, Tensor], Tensor],
) -> Float[Tensor, "n rows"]:
    """Round the columns last to first and return the errors target − value.

    `choose(j, best)` returns the value of column j in every row. It may overwrite `best`, the real
    numbers that would compensate all errors made so far:

        best_j = target_j + Σ_{k>j} (R_jk / R_jj) (target_k − value_k)

    Matrices are transposed, so that each column is contiguous. The target itself is not
    overwritten, so rounding errors of floating point do not accumulate in it.

    - `unit`: from `unit_factor`.
    """
    state = CallbackSweep(*sweep_state(target, unit), choose)
    state.solve(0, len(target))
    return state.error


def sweep_state(
    target: Float[Tensor, "n rows"], unit: Float[Tensor, "n n"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the fields of a `Sweep` before its first column is rounded."""
    return target, unit, target.clone(), torch.zeros_like(target)


@dataclass(frozen=True)
class Sweep:
    """The state of nearest plane between two columns; all but `unit` are transposed.

    - `target`: the weight to round.
    - `unit`: R_jk / R_jj above the diagonal, 0 elsewhere.
    - `best`: the target plus the corrections for the errors that were passed on so far.
    - `error`: target − value, 0 in columns that are not rounded yet.
    """

    target: Float[Tensor, "n rows"]
    unit: Float[Tensor, "n n"]
    best: Float[Tensor, "n rows"]
    error: Float[Tensor, "n rows"]

    def solve(self, first: int, end: int) -> None:
        """Round columns first .. end − 1, with one matrix product between the halves.

        The right half is rounded first; its errors then change `best` of the left half.
        """
        if end - first <= LEAF:
            return self.leaf(first, end)
        middle = end - max(LEAF, (end - first) // 2 // LEAF * LEAF)
        self.solve(middle, end)
        pull = self.unit[first:middle, middle:end]
        self.best[first:middle].addmm_(pull, self.error[middle:end])
        self.solve(first, middle)

    def leaf(self, first: int, end: int) -> None:
        """Round at most LEAF columns, one after the other."""
        raise NotImplementedError


@dataclass(frozen=True)
class CallbackSweep(Sweep):
    """A sweep whose values are chosen by a Python function."""

    choose: Callable[[int, Tensor], Tensor]

    def leaf(self, first: int, end: int) -> None:
        errors = self.error[first:end]
        errors_by_row = errors.T  # zero where no error was made yet
        # views of columns are made once for all: making them takes as long as the arithmetic
        parts = (
            self.unit[first:end, first:end],
            self.best[first:end],
            self.target[first:end],
            errors,
        )
        columns = list(zip(*(part.unbind() for part in parts), strict=True))
        for j in reversed(range(first, end)):
            pull, best, target, error = columns[j - first]
            best.addmv_(errors_by_row, pull)
            torch.sub(target, self.choose(j, best), out=error)

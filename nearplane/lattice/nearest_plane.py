"""Babai's nearest plane on one Cholesky factor, plain and blocked."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from nearplane.lattice.threads import one_thread
from nearplane.op import Op
from nearplane.rows import TILE, by_rows, some_rows

STRIPE = 128  # rows of a factor that are scaled at a time
LEAF = 32  # columns rounded one after the other between two matrix products


def nearest_integer(x: Float[Tensor, "..."], low: int | None, high: int | None) -> Tensor:
    """Return x rounded half to even, clipped to low..high: the one rounding of the package."""
    rounded = torch.round(x)
    return rounded if low is None and high is None else rounded.clamp_(low, high)


def nearest_plane_plain(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "#rows #n"],
    low: int | None = None,
    high: int | None = None,
) -> Int32[Tensor, "rows n"]:
    """Return what `nearest_plane` returns, one column at a time: the version to read.

    Cost: rows · n² / 2 multiply-adds, none of them in matrix products.
    """
    step = step.expand_as(target)
    code = torch.empty_like(target, dtype=torch.int32)
    error = torch.zeros_like(target)
    for j in reversed(range(target.shape[1])):
        # errors already made to the right move the best value of column j
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

    - `target`: weights to quantize; each row is its own closest-vector problem.
    - `factor`: upper triangular R with RᵀR = hessian; no diagonal entry is zero.
    - `step`: non-zero, of either sign, for every element, row, column or the whole.
    - `low`, `high`: admissible codes. With either set, `bound` no longer holds.

    Cost: rows · n² / 2 multiply-adds, all but a share LEAF / n of them in matrix products.
    """
    solve = unit_lattice if 1 in step.shape else own_steps

    def rounded(rows: slice) -> tuple[Tensor]:
        some = tiles(target[rows], some_rows(step, rows))
        return (torch.cat([solve(t, factor, s, (low, high)) for t, s in some]),)

    return by_rows(rounded, len(target))[0]


def tiles(
    target: Float[Tensor, "rows n"], step: Float[Tensor, "#rows #n"]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield TILE rows of the target after the other, with the steps that belong to them."""
    for first in range(0, max(len(target), 1), TILE):
        rows = slice(first, first + TILE)
        yield target[rows], some_rows(step, rows)


def own_steps(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "rows n"],
    limits: tuple[int | None, int | None],
) -> Int32[Tensor, "rows n"]:
    """Return the codes where every element has a step of its own."""
    columns = target.T.contiguous()
    steps = step.to(target.dtype).expand_as(target).T.contiguous().unbind()
    code = torch.empty_like(columns)
    codes = code.unbind()

    def choose(j: int, best: Tensor) -> Tensor:
        codes[j].copy_(nearest_integer(best / steps[j], *limits))
        return codes[j] * steps[j]

    sweep(columns, factor.to(target.dtype), choose)
    return code.T.to(torch.int32, memory_format=torch.contiguous_format)


def unit_lattice(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "#rows #n"],
    limits: tuple[int | None, int | None],
) -> Int32[Tensor, "rows n"]:
    """Return the codes of a step that varies along one axis only, on a lattice of step 1.

    With target / step and R · diag(step) for column steps the integers are their own values:
    three operations a column instead of seven.
    """
    columns = (target / step.to(target.dtype)).T.contiguous()
    scaled = scaled_factor(factor, step, target.dtype) if step.shape[1] > 1 else factor
    code = torch.empty_like(columns)
    codes = code.unbind()

    def choose(j: int, best: Tensor) -> Tensor:
        nearest = torch.round(best, out=codes[j])
        return nearest if limits == (None, None) else nearest.clamp_(*limits)

    sweep(columns, scaled.to(target.dtype), choose)
    return code.T.to(torch.int32, memory_format=torch.contiguous_format)


def scaled_factor(
    factor: Float[Tensor, "n n"], step: Float[Tensor, "1 n"], dtype: torch.dtype
) -> Float[Tensor, "n n"]:
    """Return factor · diag(step), rounded to a type; no whole of it is made in another."""
    made = torch.empty(factor.shape, dtype=dtype, device=factor.device)
    for some, of in zip(made.split(STRIPE), factor.split(STRIPE), strict=True):
        some.copy_(of * step)
    return made


def sweep(
    target: Float[Tensor, "n rows"],
    factor: Float[Tensor, "n n"],
    choose: Callable[[int, Tensor], Tensor],
) -> Float[Tensor, "n rows"]:
    """Sweep the columns last to first; `choose(j, best)` returns the value that column j takes.

    `best` is the real number that would undo every error made so far,

        best_j = target_j + Σ_{k>j} (R_jk / R_jj) (target_k − value_k),

    and is `choose`'s to overwrite. Columns are rows here, so that each is contiguous. The target
    is never overwritten: no drift. Returns the errors target − value.
    """
    walk = ChosenSweep(*sweep_state(target, factor), choose)
    walk.solve(0, len(target))
    return walk.error


def sweep_state(
    target: Float[Tensor, "n rows"], factor: Float[Tensor, "n n"]
) -> tuple[Tensor, ...]:
    """Return the fields of a `Sweep` that has not begun."""
    unit = (factor / factor.diagonal()[:, None]).triu_(1)
    return target, unit, target.clone(), torch.zeros_like(target)


@dataclass(frozen=True)
class Sweep:
    """A sweep under way: what is wished for, the unit factor, what is best now, errors made."""

    target: Float[Tensor, "n rows"]
    unit: Float[Tensor, "n n"]
    best: Float[Tensor, "n rows"]
    error: Float[Tensor, "n rows"]

    def solve(self, first: int, end: int) -> None:
        """Round columns first .. end − 1: the right half, its pull on the left half, the left."""
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
class ChosenSweep(Sweep):
    """A walk whose values are chosen by a function of torch."""

    choose: Callable[[int, Tensor], Tensor]

    def leaf(self, first: int, end: int) -> None:
        made = self.error[first:end]
        earlier = made.T  # zero where no error was made yet
        # views are made once a leaf: making them costs as much as the arithmetic
        parts = self.unit[first:end, first:end], self.best[first:end], self.target[first:end], made
        columns = list(zip(*(part.unbind() for part in parts), strict=True))
        with one_thread():
            for j in reversed(range(first, end)):
                pull, best, wished, error = columns[j - first]
                best.addmv_(earlier, pull)
                torch.sub(wished, self.choose(j, best), out=error)

"""Count what a method starts on an accelerator: a trial on small matrices, scaled to a layer's.

Sweeps that have a Triton kernel start one launch for every leaf of the recursion over columns, and
one product between leaves; how often a method calls them, and for how many rows at a time, is
counted. All else is counted operator by operator. For a method that sweeps without such a kernel
that is every column, so that its launches are taken to be in proportion to the columns.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nearplane.lattice.nearest_plane import Sweep, sweep_state
from nearplane.lattice.two_sided import at_the_same_time
from nearplane.methods import Method
from nearplane.methods.rate import histogram, histogram_on_device
from nearplane.model.operator_count import OperatorCount
from nearplane.op import Op
from nearplane.plan.trial_matrix import TrialMatrix
from nearplane.rows import TILE
from nearplane.walk.output_hessians import MOST_ROWS

KERNEL = "triton"  # the versions that round the columns of a leaf in one launch
COLUMNS = 128  # of the matrices on which operators are counted
FLOAT32 = 4  # bytes


class Started(NamedTuple):
    """Kernels that are launched, and the bytes of device memory that they move."""

    launches: float = 0.0
    bytes: float = 0.0

    def times(self, factor: int | float) -> "Started":
        return Started(factor * self.launches, factor * self.bytes)

    @classmethod
    def sum(cls, parts: Iterable["Started"]) -> "Started":
        """Return all of them together."""
        launches, moved = zip(*parts, strict=True)
        return cls(sum(launches), sum(moved))


@dataclass(frozen=True)
class CountedSweep(Sweep):
    """A sweep over the columns of tensors without numbers, whose leaves are only counted."""

    leaves: list[int] = field(default_factory=list)

    def leaf(self, first: int, end: int) -> None:
        self.leaves.append(end - first)


@cache
def sweep_starts(rows: int, columns: int) -> Started:
    """Return what one call of a sweep starts that has a kernel for its leaves."""
    target = torch.empty(rows, columns, device="meta")
    factor = torch.empty(columns, columns, device="meta", dtype=torch.float64)
    with OperatorCount() as count:
        scaled = (factor * factor[:1]).float()
        in_steps = (target / target[:1]).T.contiguous()
        sweep = CountedSweep(*sweep_state(in_steps, scaled))
        sweep.solve(0, columns)
        in_steps.to(torch.int32).T.contiguous()
    # of every element: target and best are read, best, error and code written
    moved = sum(FLOAT32 * (5 * rows + leaf) * leaf for leaf in sweep.leaves)
    return Started(count.launches + len(sweep.leaves), count.bytes + moved)


@dataclass(frozen=True)
class CountedTrial:
    """What a method started on a matrix of a number of rows.

    - `sweeps`: how often all rows were rounded by sweeps with a kernel; `calls`: by the rows of a
      call, how many calls these were.
    - `others`: what else it started. `by_columns`: whether its launches are column after column.
    """

    rows: int
    sweeps: float
    calls: Counter[int]
    others: Started
    by_columns: bool

    def sweep(self, rows: int, columns: int) -> Started:
        """Return what one sweep over all rows of a matrix starts: more rows, no more calls."""
        if not self.sweeps:
            return Started()
        more = rows / self.rows
        parts = [
            sweep_starts(round(more * each), columns).times(n) for each, n in self.calls.items()
        ]
        return Started.sum(parts).times(1 / self.sweeps)

    def other(self, rows: int, columns: int) -> Started:
        """Return what a matrix starts beside sweeps."""
        wider = columns / COLUMNS
        launches = self.others.launches * (wider if self.by_columns else 1)
        return Started(launches, self.others.bytes * wider).times(rows / self.rows)


@dataclass(frozen=True)
class MethodLaunches:
    """What a method starts on an accelerator, by the rows of a layer."""

    trials: dict[int, CountedTrial]

    def sweep(self, rows: int, columns: int) -> Started:
        """Return what one sweep over a matrix starts."""
        return self.nearest(rows).sweep(rows, columns)

    def other(self, rows: int, columns: int) -> Started:
        """Return what a matrix starts beside sweeps and certificates."""
        return self.nearest(rows).other(rows, columns)

    def nearest(self, rows: int) -> CountedTrial:
        return self.trials[min(self.trials, key=lambda tried: abs(tried - rows))]


def counted(method: Method, rows: Iterable[int]) -> MethodLaunches:
    """Return what a method starts on layers of so many rows, of which MOST_ROWS are tried.

    More rows start as many times as much. Where all is counted operator by operator, which takes
    long, so do fewer.
    """
    *fewer, most = sorted({min(max(each, TILE), MOST_ROWS) for each in rows})
    trials = {most: counted_rows(method, most)}
    if trials[most].calls:
        trials |= {each: counted_rows(method, each) for each in fewer}
    return MethodLaunches(trials)


def counted_rows(method: Method, rows: int) -> CountedTrial:
    """Count what a method starts on matrices of a number of rows."""
    matrix = TrialMatrix.of(method, 0, rows, COLUMNS)
    calls, count = Counter[int](), OperatorCount()
    with count, as_on_device(count, calls):
        matrix.quantize()
    swept = sum(number * each for each, number in calls.items())
    others = Started(count.launches, count.bytes)
    return CountedTrial(rows, swept / rows, calls, others, method.sweeps and not calls)


@contextmanager
def as_on_device(count: OperatorCount, calls: Counter[int]) -> Iterator[None]:
    """Inside a `with` block, count the calls of sweeps, and take histograms by operators."""

    def called(op: Op, target: Tensor, *others: Any, **named: Any) -> Tensor:
        calls[len(target)] += 1
        with count.pause():
            return op(target, *others, **named)

    with ExitStack() as stack:
        stack.enter_context(histogram.within(histogram_on_device))
        stack.enter_context(at_the_same_time.within(lambda blocks, device: [list(blocks)]))
        for op in functions_with_versions():
            has_kernel = KERNEL in op.versions
            stack.enter_context(op.within(partial(called, op) if has_kernel else op.reference))
        yield


def functions_with_versions() -> list[Op]:
    """Return the functions of lattices and methods that have faster versions."""
    rooms = ("nearplane.lattice", "nearplane.methods")
    modules = [module for name, module in sys.modules.items() if name.startswith(rooms)]
    found = {id(each): each for module in modules for each in vars(module).values()}
    return [op for op in found.values() if isinstance(op, Op) and op.versions]

"""Searching for the scale of the steps at which entropy-coded integers meet their rate."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Float32, Int32, Int64, UInt8
from torch import Tensor

from nearplane import codes
from nearplane.methods.rate import MARGIN, TOLERANCE, Budget, RateError, headroom, sample_rows
from nearplane.rows import RowsOf, by_rows

SAMPLE_PASSES = 2
FULL_PASSES = 6
LARGE = 4_000_000  # weights beyond which a pass over a sample is cheap beside a full one
ALL = slice(None)

Stored = tuple[UInt8[Tensor, " bytes"], int]


@dataclass(frozen=True)
class Coded:
    """Integers and the steps that are stored with them, on a basis's columns.

    - `side`: the steps that the rounding was decided with, where they are not the stored ones.
    """

    code: Int32[Tensor, "rows n"]
    step: Float32[Tensor, "1 step_columns"]
    side: Float32[Tensor, "1 n"] | None = None

    def value_in(self, dtype: torch.dtype) -> RowsOf:
        """Return the function that gives some rows' values."""
        step = self.step.to(dtype)
        return lambda rows: self.code[rows] * step

    def on(self, columns: Int64[Tensor, " n"]) -> "Coded":
        """Return the same with its columns picked in another order."""
        step = self.step[:, columns] if self.step.shape[1] > 1 else self.step
        side = None if self.side is None else self.side[:, columns]
        (code,) = by_rows(lambda rows: (self.code[rows][:, columns],), len(self.code))
        return Coded(code, step, side)

    def packed(self) -> tuple[UInt8[Tensor, " bytes"], int]:
        """Return the record and how many of its bytes are codes."""
        return codes.pack(self.code, self.step, self.code.shape[1], None, codes.Huffman())


@dataclass(frozen=True)
class ScaleRequest:
    """What a search wants to see next: the codes of some rows at a scale of the steps."""

    scale: float
    rows: slice


Search = Generator[ScaleRequest, Coded, tuple[Coded, Stored]]


def meet(budget: Budget, start: float, back: Int64[Tensor, " n"]) -> Search:
    """Ask for codes until they are at or just under the target; return them and their record.

    rate falls by about a bit when the scale doubles, so scale ← scale · 2^(rate − target), in a
    large matrix first on some of its rows, until the rate is under the target by less than
    TOLERANCE; at most FULL_PASSES times once it has been under it at all.

    - `back`: where the basis's columns belong in the record.

    Raises RateError when no scale was found whose rate is low enough.
    """
    scale = (yield from on_sample(budget, start)) if budget.weights > LARGE else start
    best, smallest_gap = None, inf
    for passes in range(4 * FULL_PASSES):
        coded = yield ScaleRequest(scale, ALL)
        gap = budget.bpw - MARGIN - budget.likely_rate(coded.code)
        if 0 <= gap < smallest_gap:
            best, smallest_gap = coded, gap
        if smallest_gap <= TOLERANCE or (best is not None and passes + 1 >= FULL_PASSES):
            original = best.on(back)
            record, code_bytes = original.packed()
            overshoot = budget.of_bytes(len(record)) - budget.bpw
            if overshoot <= 0:
                return original, (record, code_bytes)
            best, smallest_gap, gap = None, inf, -overshoot
        # further past the target each time, so that the rate ends up under it
        growth = TOLERANCE / 2 * (1 + passes // FULL_PASSES * 8) - gap
        scale *= 2 ** max(growth, -headroom(coded.code))
    raise RateError(f"no step was found that stores {budget.bpw:g} bits per weight or fewer")


def on_sample(budget: Budget, start: float) -> Generator[ScaleRequest, Coded, float]:
    """Return the scale that some of the rows say will meet the target."""
    some, scale = sample_rows(budget.rows, budget.columns), start
    for _ in range(SAMPLE_PASSES):
        code = (yield ScaleRequest(scale, some)).code
        surplus = budget.likely_rate(code) - budget.target
        scale *= 2 ** max(surplus, -headroom(code))
        if abs(surplus) < 2 * TOLERANCE:
            break
    return scale


def drive(
    searches: Sequence[Search], attempt: Callable[[dict[int, ScaleRequest]], dict[int, Coded]]
) -> list[tuple[Coded, Stored]]:
    """Run searches side by side: every round, `attempt` answers what each of them wants to see.

    Matrices that share a basis share the walk over its columns this way.
    """
    wishes = {index: next(search) for index, search in enumerate(searches)}
    found: dict[int, tuple[Coded, Stored]] = {}
    while wishes:
        for index, coded in attempt(wishes).items():
            try:
                wishes[index] = searches[index].send(coded)
            except StopIteration as end:
                found[index] = end.value
                del wishes[index]
    return [found[index] for index in range(len(searches))]

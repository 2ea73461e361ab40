"""Searching for the scale of the steps at which entropy-coded integers meet their rate."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Float32, Int32, Int64, UInt8
from torch import Tensor

from nearplane import codes
from nearplane.methods.rate import MARGIN, TOLERANCE, Budget, RateError, headroom_bits, sample_rows
from nearplane.rows import RowsOf, by_rows

SAMPLE_PASSES = 2  # passes over a sample of the rows
FULL_PASSES = 6  # passes over all rows after which the best rate found so far is taken
LARGE_MATRIX = 4_000_000  # weights above which rounding a sample of the rows first saves time
ALL_ROWS = slice(None)

PackedRecord = tuple[UInt8[Tensor, " bytes"], int]


@dataclass(frozen=True)
class CodedMatrix:
    """Integers and the steps that are stored with them.

    - `decision_step`: the steps that the integers were chosen with, where other ones are stored.
    """

    code: Int32[Tensor, "rows n"]
    step: Float32[Tensor, "1 step_columns"]
    decision_step: Float32[Tensor, "1 n"] | None = None

    @property
    def chosen_with(self) -> Float32[Tensor, "1 #n"]:
        """The steps that the integers were chosen with."""
        return self.step if self.decision_step is None else self.decision_step

    def value_in(self, dtype: torch.dtype) -> RowsOf:
        """Return the function that gives step · code of some rows, in `dtype`."""
        step = self.step.to(dtype)
        return lambda rows: self.code[rows] * step

    def permuted(self, columns: Int64[Tensor, " n"]) -> "CodedMatrix":
        """Return the matrix whose column k is column columns[k] of this one."""
        step = self.step[:, columns] if self.step.shape[1] > 1 else self.step
        decision = None if self.decision_step is None else self.decision_step[:, columns]
        (code,) = by_rows(lambda rows: (self.code[rows][:, columns],), len(self.code))
        return CodedMatrix(code, step, decision)

    def packed(self) -> PackedRecord:
        """Return the record and how many of its bytes are codes."""
        return codes.pack(self.code, self.step, self.code.shape[1], None, codes.Huffman())


@dataclass(frozen=True)
class ScaleRequest:
    """What a search asks for next: the codes of some rows, with all steps times `scale`."""

    scale: float
    rows: slice


Search = Generator[ScaleRequest, CodedMatrix, tuple[CodedMatrix, PackedRecord]]


def search_scale(budget: Budget, start: float, invperm: Int64[Tensor, " n"]) -> Search:
    """Search the scale whose rate is at or just under the target; return the codes and record.

    This is a generator: it yields a request and is sent the codes at that scale. The rate falls by
    about one bit when the scale doubles, so scale ← scale · 2^(rate − target). It stops when the
    rate is less than TOLERANCE under the target, or after FULL_PASSES passes if one was under it.
    In a large matrix the first passes are over a sample of the rows.

    - `invperm`: the inverse of `Basis.columns`, from the basis's order of columns to the record's.

    Raises RateError when no scale was found whose rate is low enough.
    """
    scale = (yield from search_on_sample(budget, start)) if budget.weights > LARGE_MATRIX else start
    best: CodedMatrix | None = None
    smallest_gap = inf  # the gap is target − rate, in bits per weight
    for passes in range(4 * FULL_PASSES):
        coded = yield ScaleRequest(scale, ALL_ROWS)
        gap = budget.bpw - MARGIN - budget.estimated_rate(coded.code)
        if 0 <= gap < smallest_gap:
            best, smallest_gap = coded, gap
        if best is not None and (smallest_gap <= TOLERANCE or passes + 1 >= FULL_PASSES):
            original = best.permuted(invperm)
            record, code_bytes = original.packed()
            overshoot = budget.rate_of_bytes(len(record)) - budget.bpw
            if overshoot <= 0:
                return original, (record, code_bytes)
            best, smallest_gap, gap = None, inf, -overshoot
        # aim further below the target as passes go on, so that the rate ends up under it
        growth = TOLERANCE / 2 * (1 + passes // FULL_PASSES * 8) - gap
        scale *= 2 ** max(growth, -headroom_bits(coded.code))
    raise RateError(f"no step was found that stores {budget.bpw:g} bits per weight or fewer")


def search_on_sample(budget: Budget, start: float) -> Generator[ScaleRequest, CodedMatrix, float]:
    """Return the scale at which a sample of the rows meets the target."""
    sample, scale = sample_rows(budget.rows, budget.columns), start
    for _ in range(SAMPLE_PASSES):
        code = (yield ScaleRequest(scale, sample)).code
        excess = budget.estimated_rate(code) - budget.target
        scale *= 2 ** max(excess, -headroom_bits(code))
        if abs(excess) < 2 * TOLERANCE:
            break
    return scale


def run_searches(
    searches: Sequence[Search],
    round_requests: Callable[[dict[int, ScaleRequest]], dict[int, CodedMatrix]],
) -> list[tuple[CodedMatrix, PackedRecord]]:
    """Run several searches at once; `round_requests` answers one request of each per round.

    So matrices that share a basis can be rounded in one sweep over its columns.
    """
    requests = {index: next(search) for index, search in enumerate(searches)}
    found: dict[int, tuple[CodedMatrix, PackedRecord]] = {}
    while requests:
        for index, coded in round_requests(requests).items():
            try:
                requests[index] = searches[index].send(coded)
            except StopIteration as end:
                found[index] = end.value
                del requests[index]
    return [found[index] for index in range(len(searches))]

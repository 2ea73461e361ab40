"""Finding the scale of the steps at which entropy-coded integers meet a rate."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, inf, log2

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64, UInt8
from torch import Tensor

from nearplane import codes
from nearplane.types import NearplaneError

SAMPLE_WEIGHTS = 60_000  # integers enough to know a rate to 0.01 bit
SAMPLE_PASSES = 2
LARGE = 4_000_000  # weights beyond which a pass over a sample is cheap beside a full one
FULL_PASSES = 6
TOLERANCE = 0.003  # bits a weight under the target that are not worth another pass
MARGIN = 0.0004  # what the likely rate may be too low by
NORMAL_BITS = 2.047  # ½ log₂ 2πe
MODEL_STEPS = 4
LARGEST = 2**20  # a code beyond which no step is made smaller: int32 and float32 end not far away


class RateError(NearplaneError):
    """No step meets the target; the message names the nearest rate that can be met."""


@dataclass(frozen=True)
class Coded:
    """Integers and the steps that are stored with them, on a basis's columns.

    - `side`: the steps that the rounding was decided with, where they are not the stored ones.
    """

    code: Int32[Tensor, "rows n"]
    step: Float32[Tensor, "1 step_columns"]
    side: Float32[Tensor, "1 n"] | None = None

    def on(self, columns: Int64[Tensor, " n"]) -> "Coded":
        """Return the same with its columns picked in another order."""
        step = self.step[:, columns] if self.step.shape[1] > 1 else self.step
        side = None if self.side is None else self.side[:, columns]
        return Coded(self.code[:, columns], step, side)

    def packed(self) -> tuple[UInt8[Tensor, " bytes"], int]:
        """Return the record and how many of its bytes are codes."""
        return codes.pack(self.code, self.step, self.code.shape[1], None, codes.Huffman())


@dataclass(frozen=True)
class Budget:
    """What the record of one matrix may cost, and what it does cost.

    The rate counts every stored byte and the record's directory entry:

        rate = 8 (record + ENTRY_BYTES) / (rows · columns)
    """

    bpw: float
    rows: int
    columns: int
    steps: int

    @property
    def target(self) -> float:
        """What to aim at: the middle of what counts as met."""
        return self.bpw - MARGIN - TOLERANCE / 2

    def likely_rate(self, code: Int32[Tensor, "some_rows columns"]) -> float:
        """Return about the bits a weight that a matrix with such codes in all its rows stores."""
        symbols, counts = histogram(code)
        share = self.rows * self.columns / code.numel()
        scaled = np.maximum(1, np.rint(counts * share)).astype(np.int64)
        return self.of_bytes(codes.price(symbols, scaled, self.steps))

    def of_bytes(self, stored: int | float) -> float:
        """Return the rate of a record of so many bytes."""
        return 8 * (stored + codes.ENTRY_BYTES) / (self.rows * self.columns)

    def check(self) -> None:
        """Raise RateError when even a matrix of zeros would store more than the target."""
        zeros = np.zeros(1, np.int64), np.array([self.rows * self.columns])
        floor = self.of_bytes(codes.price(*zeros, self.steps))
        if floor > self.bpw:
            raise RateError(
                f"{self.bpw:g} bits per weight cannot be met by a matrix of {self.rows} x "
                f"{self.columns}: the nearest that can is {ceil(floor * 100 + 1) / 100:g}"
            )


def first_scale(
    budget: Budget, scaled: Float[Tensor, "some_rows n"], pull: Float[Tensor, "some_rows n"] | None
) -> float:
    """Return an s at which round(scaled / s + pull) meets the budget about.

    The rate model: integers are the weights' own plus the errors that nearest plane passes on
    (`expected_pull`); their rate falls by about a bit when s doubles. It starts from a normal
    distribution's entropy log₂ σ + ½ log₂ 2πe.
    """
    sigma = float(scaled.double().square().mean().sqrt())
    if sigma == 0:
        return 1.0
    scale = sigma * 2 ** (NORMAL_BITS - budget.bpw)
    finest = float(scaled.abs().amax()) / LARGEST
    for _ in range(MODEL_STEPS):
        scale = max(scale, finest)
        best = scaled / scale if pull is None else scaled / scale + pull
        scale *= 2 ** (budget.likely_rate(best.round_().int()) - budget.target)
    return max(scale, finest)


def expected_pull(factor: Float[Tensor, "n n"], rows: int) -> Float[Tensor, "rows n"]:
    """Return draws of what nearest plane's earlier errors add to a column, in steps.

    Residuals are uniform in a box (`lattice.expected_loss`), so with u uniform in (−½, ½)ⁿ and
    the unit factor U = diag(R)⁻¹R on the lattice of step 1, errors are U⁻¹u and the pull is
    u − U⁻¹u: a triangular solve in place of a sweep over the columns.
    """
    draws = torch.Generator().manual_seed(0)
    u = torch.rand(len(factor), rows, generator=draws, dtype=factor.dtype) - 0.5
    unit = factor / factor.diagonal()[:, None]
    error = torch.linalg.solve_triangular(unit, u, upper=True, unitriangular=True)
    return (u - error).T.clamp_(-LARGEST, LARGEST)


def histogram(code: Int32[Tensor, "..."]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct integers, ascending, and how often each occurs."""
    return codes.histogram(code.numpy().reshape(-1))


def sample_rows(rows: int, columns: int) -> slice:
    """Return evenly spaced rows, enough to know the rate well."""
    wanted = max(1, min(rows, ceil(max(SAMPLE_WEIGHTS, rows * columns / 20) / columns)))
    return slice(None, None, rows // wanted)


def meet(
    attempt: Callable[[float, slice], Coded],
    back: Int64[Tensor, " n"],
    budget: Budget,
    start: float,
) -> tuple[Coded, tuple[Tensor, int]]:
    """Return `attempt(scale, all rows)` on columns `back`, at or just under the target; its record.

    rate falls by about a bit when the scale doubles, so scale ← scale · 2^(rate − target), in a
    large matrix first on some of its rows, until the rate is under the target by less than
    TOLERANCE; at most FULL_PASSES times once it has been under it at all.

    Raises RateError when no scale was found whose rate is low enough.
    """
    scale, best, smallest_gap = start, None, inf
    if budget.rows * budget.columns > LARGE:
        scale = on_sample(attempt, budget, start)
    for passes in range(4 * FULL_PASSES):
        coded = attempt(scale, slice(None))
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


def headroom(code: Int32[Tensor, "some_rows columns"]) -> float:
    """Return how often the steps may be halved before a code of these is LARGEST."""
    largest = max(1, *(abs(int(x)) for x in code.aminmax()))
    return max(0.0, log2(LARGEST / largest))


def on_sample(attempt: Callable[[float, slice], Coded], budget: Budget, start: float) -> float:
    """Return the scale that some of the rows say will meet the target."""
    some, scale = sample_rows(budget.rows, budget.columns), start
    for _ in range(SAMPLE_PASSES):
        code = attempt(scale, some).code
        surplus = budget.likely_rate(code) - budget.target
        scale *= 2 ** max(surplus, -headroom(code))
        if abs(surplus) < 2 * TOLERANCE:
            break
    return scale

"""Finding the scale of the steps at which entropy-coded integers meet a rate."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, inf

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64, UInt8
from torch import Tensor

from nearplane import codes
from nearplane.types import NearplaneError

SAMPLE_WEIGHTS = 60_000  # integers enough to know a rate to 0.01 bit
SAMPLE_PASSES = 2
FULL_PASSES = 6
TOLERANCE = 0.003  # bits a weight under the target that are not worth another pass
MARGIN = 0.0004  # what the likely rate may be too low by
NORMAL_BITS = 2.047  # ½ log₂ 2πe
MODEL_STEPS = 4


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


def first_scale(scaled: Float[Tensor, "..."], bits: float) -> float:
    """Return an s at which round(scaled / s) has about `bits` bits of entropy.

    The rate model H(round(w / s)) ≈ h(w) − log₂ s, made exact on the weights themselves: it
    starts from a normal distribution's h(w) = log₂ σ + ½ log₂ 2πe.
    """
    sigma = float(scaled.double().square().mean().sqrt())
    if sigma == 0:
        return 1.0
    scale = sigma * 2 ** (NORMAL_BITS - bits)
    for _ in range(MODEL_STEPS):
        # beyond 2^24 steps an integer has more bits than any target
        ratio = (scaled / scale).clamp_(-(2.0**24), 2.0**24)
        scale *= 2 ** (codes.entropy(histogram(ratio.round_().int())[1]) - bits)
    return scale


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

    rate falls by about a bit when the scale doubles, so scale ← scale · 2^(rate − target):
    SAMPLE_PASSES times on some rows, then on all of them until the rate is under the target by
    less than TOLERANCE; at most FULL_PASSES times once it has been under it at all.

    Raises RateError when no scale was found whose rate is low enough.
    """
    budget.check()
    scale, best, smallest_gap = on_sample(attempt, budget, start), None, inf
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
        scale *= 2 ** (TOLERANCE / 2 * (1 + passes // FULL_PASSES * 8) - gap)
    raise RateError(f"no step was found that stores {budget.bpw:g} bits per weight or fewer")


def on_sample(attempt: Callable[[float, slice], Coded], budget: Budget, start: float) -> float:
    """Return the scale that some of the rows say will meet the target."""
    some, scale = sample_rows(budget.rows, budget.columns), start
    for _ in range(SAMPLE_PASSES):
        surplus = budget.likely_rate(attempt(scale, some).code) - budget.bpw
        scale *= 2 ** (surplus + MARGIN + TOLERANCE / 2)
        if abs(surplus) < 2 * TOLERANCE:
            break
    return scale

"""Finding the scale of the steps at which entropy-coded integers meet a rate."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from nearplane import codes
from nearplane.types import NearplaneError

SAMPLE_WEIGHTS = 60_000  # integers enough to know a rate to 0.01 bit
SAMPLE_PASSES = 2
FULL_PASSES = 6
TOLERANCE = 0.002  # bits a weight under the target that are not worth another pass

Result = TypeVar("Result")


class RateError(NearplaneError):
    """No step meets the target; the message names the nearest rate that can be met."""


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
        symbols, counts = codes.histogram(code.numpy().reshape(-1))
        share = self.rows * self.columns / code.numel()
        scaled = np.maximum(1, np.rint(counts * share)).astype(np.int64)
        return self.of_bytes(codes.record.price(symbols, scaled, self.steps))

    def of_bytes(self, stored: int | float) -> float:
        """Return the rate of a record of so many bytes."""
        return 8 * (stored + codes.record.ENTRY_BYTES) / (self.rows * self.columns)

    def rate(self, code: Int32[Tensor, "rows columns"]) -> float:
        """Return the bits a weight that a record of these codes stores, exactly."""
        return self.of_bytes(codes.record.size(code, self.steps))

    def check(self) -> None:
        """Raise RateError when even a matrix of zeros would store more than the target."""
        zeros = np.zeros(1, np.int64), np.array([self.rows * self.columns])
        floor = self.of_bytes(codes.record.price(*zeros, self.steps))
        if floor > self.bpw:
            raise RateError(
                f"{self.bpw:g} bits per weight cannot be met by a matrix of {self.rows} x "
                f"{self.columns}: the nearest that can is {ceil(floor * 100 + 1) / 100:g}"
            )


def first_scale(scaled: Float[Tensor, "..."], bits: float) -> float:
    """Return the s at which round(scaled / s) has about `bits` bits of entropy.

    The rate model H(round(w / s)) ≈ h(w) − log₂ s, made exact on the weights themselves.
    """
    low, high = -40.0, float(torch.log2(scaled.abs().amax().clamp_min(1e-30))) + 2
    for _ in range(24):
        middle = (low + high) / 2
        # beyond 2^24 steps an integer has more bits than any target
        ratio = (scaled / 2**middle).clamp_(-(2.0**24), 2.0**24)
        entropy = codes.entropy(codes.histogram(ratio.round_().int().numpy().reshape(-1))[1])
        low, high = (middle, high) if entropy > bits else (low, middle)
    return 2**high


def sample_rows(rows: int, columns: int) -> slice:
    """Return evenly spaced rows, enough to know the rate well."""
    wanted = max(1, min(rows, ceil(max(SAMPLE_WEIGHTS, rows * columns / 20) / columns)))
    return slice(None, None, rows // wanted)


def meet(
    attempt: Callable[[float, slice], Result],
    code_of: Callable[[Result], Tensor],
    budget: Budget,
    start: float,
) -> Result:
    """Return `attempt(scale, all rows)` for a scale whose rate is at or just under the target.

    rate falls by about a bit when the scale doubles, so scale ← scale · 2^(rate − target):
    SAMPLE_PASSES times on some rows, then on all of them until the rate is under the target by
    less than TOLERANCE; at most FULL_PASSES times once it has been under it at all.

    Raises RateError when no scale is small enough in rate.
    """
    budget.check()
    scale, some = start, sample_rows(budget.rows, budget.columns)
    for _ in range(SAMPLE_PASSES):
        scale *= 2 ** (budget.likely_rate(code_of(attempt(scale, some))) - budget.bpw)
    best, smallest_gap = None, float("inf")
    for passes in range(4 * FULL_PASSES):
        result = attempt(scale, slice(None))
        gap = budget.bpw - budget.rate(code_of(result))
        if 0 <= gap < smallest_gap:
            best, smallest_gap = result, gap
        if smallest_gap <= TOLERANCE or (best is not None and passes + 1 >= FULL_PASSES):
            break
        # a little past the target, and further each time, so that the rate ends up under it
        scale *= 2 ** (TOLERANCE / 2 * (1 + passes // FULL_PASSES * 8) - gap)
    if best is None:
        raise RateError(f"no step was found that stores {budget.bpw:g} bits per weight or fewer")
    return best

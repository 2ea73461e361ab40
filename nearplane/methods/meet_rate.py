"""Rounding, prices and steps brought to agree: rate-aware integers that just meet their rate."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import log2

import torch
from jaxtyping import Float, Float32, Float64, Int32, Int64
from torch import Tensor

from nearplane import codes
from nearplane.lattice.nearest_plane import scaled_factor
from nearplane.lattice.rate_aware import Prices
from nearplane.methods.rate import (
    LARGEST,
    NORMAL_BITS,
    TOLERANCE,
    RateError,
    expected_pulls,
)
from nearplane.methods.scale_search import Coded
from nearplane.rows import by_rows, in_parts

PASSES = 4  # sweeps after which the best rate under the target is taken
MOST_PASSES = 20
PREDICTIONS = 4
SLOPES = (-1.2, -0.6)  # bits that doubled steps can cost
# of layers of two small models at 1.5 to 4 bits, times 3^-bpw:
SAVED = 1.14  # bits that rate-aware rounding saves over the predicted integers
DRIFT = 0.14  # bits that tables of the first sweep's integers save over predicted tables


@dataclass(frozen=True)
class Lattice:
    """A matrix on its basis's columns, with steps known up to a common scale.

    - `side`: the steps at scale 1.
    - `back`: where the basis's columns belong in the record.
    """

    target: Float[Tensor, "rows n"]
    factor: Float64[Tensor, "n n"]
    side: Float32[Tensor, "1 n"]
    back: Int64[Tensor, " n"]

    @cached_property
    def finest(self) -> float:
        """The scale below which an integer could leave what int32 and float32 hold."""

        def largest(rows: slice) -> tuple[Tensor]:
            return ((self.target[rows].abs() / self.side).amax(),)

        return max(float(part) for (part,) in in_parts(largest, len(self.target))) / LARGEST

    def step(self, scale: float) -> Float32[Tensor, "1 n"]:
        """Return the steps at a scale, as they can be stored."""
        return self.side * codes.round_base(scale)


@dataclass(frozen=True)
class Terms:
    """What is agreed on beforehand: the rate, the code and what a bit is worth."""

    bpw: int | float
    coder: codes.Rans
    slope: int | float

    def fit(self, code: Int32[Tensor, "rows n"]) -> codes.Tables:
        return codes.fit(code.numpy(), contexts=self.coder.contexts)

    def prices(self, tables: codes.Tables, columns: Int64[Tensor, " n"] | None = None) -> Prices:
        """Return what integers cost under fitted tables; `columns` are those wanted, in order."""
        classes = (tables.contexts.row, tables.contexts.column)
        row, column = (torch.from_numpy(part.astype("int64")) for part in classes)
        column = column if columns is None else column[columns]
        return Prices(torch.from_numpy(tables.lengths), row, column, self.slope)

    def surplus(self, tables: codes.Tables, step: Float32[Tensor, "1 n"], rows: int) -> float:
        """Return the bits a weight by which a record of such integers exceeds the rate."""
        weights = rows * step.shape[1]
        stored = codes.record_bytes(codes.step_bytes(step), tables.likely_bytes(weights))
        return excess(stored, weights, self.bpw)


def excess(stored: int | float, weights: int, bpw: int | float) -> float:
    """Return the bits a weight by which a record and its directory entry exceed a rate."""
    return 8 * (stored + codes.ENTRY_BYTES) / weights - bpw


@dataclass(frozen=True)
class RateSolution:
    """Integers on the original columns, the steps and prices that decided them, and their record.

    - `step`, `prices`: on the basis's columns.
    """

    code: Int32[Tensor, "rows columns"]
    step: Float32[Tensor, "1 n"]
    prices: Prices
    stored: tuple[Tensor, int]


Rounding = Callable[[Float32[Tensor, "1 n"], Prices], Int32[Tensor, "rows n"]]


def meet_rate(lattice: Lattice, terms: Terms, rounding: Rounding) -> RateSolution:
    """Return integers whose record meets the rate from below.

    Prices come from predicted integers at first, then from those of the first sweep, and stay: an
    endless exchange of integers and tables would only trade error for rate. The scale follows
    the secant of the last two rates. Taken is the first sweep whose record lies under the
    rate by at most TOLERANCE, or the best of PASSES if one of them was under it.

    Raises RateError when no scale was found whose rate is low enough.
    """
    rows = len(lattice.target)
    scale, tables = predict_scale(lattice, terms)
    prices, columns = terms.prices(tables), lattice.back.argsort()
    seen: list[tuple[float, float]] = []
    best: RateSolution | None = None
    least = -torch.inf
    for passes in range(1, MOST_PASSES + 1):
        step = lattice.step(scale)
        # tables are fitted to the columns as they are stored, so that packing can take them
        code = Coded(rounding(step, prices), step).on(lattice.back).code
        tables = terms.fit(code)
        surplus = terms.surplus(tables, step, rows)
        if least < surplus <= TOLERANCE:
            # near enough to be worth packing, which alone decides
            coder = replace(terms.coder, tables=tables)
            stored = codes.pack(code, step[:, lattice.back], len(columns), None, coder)
            surplus = excess(len(stored[0]), code.numel(), terms.bpw)
            if surplus <= 0:
                best, least = RateSolution(code, step, prices, stored), surplus
        if best is not None and (least >= -TOLERANCE or passes >= PASSES):
            return best
        if passes == 1:
            prices = terms.prices(tables, columns)
            surplus -= DRIFT * 3**-terms.bpw if terms.slope else 0.0
        seen.append((log2(scale), surplus))
        scale = max(2 ** next_scale(seen), lattice.finest)
    raise RateError(f"no step was found that stores {terms.bpw:g} bits per weight or fewer")


def next_scale(seen: list[tuple[float, float]]) -> float:
    """Return the logarithm of the scale to try: where the secant meets TOLERANCE / 2 under it."""
    (at, surplus), slope = seen[-1], -1.0
    if len(seen) > 1:
        earlier, before = seen[-2]
        if abs(at - earlier) > 1e-4:
            slope = (surplus - before) / (at - earlier)
    # further under the rate the longer it takes, so that it ends
    wanted = -TOLERANCE / 2 * (1 + len(seen) // 6)
    return at + (wanted - surplus) / min(max(slope, SLOPES[0]), SLOPES[1])


def predict_scale(lattice: Lattice, terms: Terms) -> tuple[float, codes.Tables]:
    """Return a scale that should about meet the rate, and tables of integers predicted for it.

    Predicted integers are weights in steps plus draws of what earlier errors add (`expected_pull`);
    their rate falls by about a bit when the scale doubles.
    """
    scaled = lattice.target / lattice.side.to(lattice.target.dtype)
    sigma = float(scaled.double().square().mean().sqrt())
    unit = scaled_factor(lattice.factor, lattice.side, scaled.dtype)
    predicted = predicted_codes(scaled, unit)
    saved = SAVED * 3**-terms.bpw if terms.slope else 0.0
    scale = max(sigma * 2 ** (NORMAL_BITS - terms.bpw), lattice.finest) or 1.0
    for _ in range(PREDICTIONS):
        tables = terms.fit(predicted(scale))
        surplus = terms.surplus(tables, lattice.step(scale), len(scaled)) - saved
        if abs(surplus) < 0.01:
            break
        scale = max(scale * 2**surplus, lattice.finest)
    return scale, tables


def predicted_codes(
    scaled: Float[Tensor, "rows n"], unit: Float[Tensor, "n n"]
) -> Callable[[float], Int32[Tensor, "rows n"]]:
    """Return the function that foretells the integers at a scale."""
    pull = expected_pulls(unit, len(scaled))

    def predicted(scale: float) -> Int32[Tensor, "rows n"]:
        def rounded(rows: slice) -> tuple[Tensor]:
            return ((scaled[rows] / scale + pull(rows)).round_().int(),)

        return by_rows(rounded, len(scaled))[0]

    return predicted

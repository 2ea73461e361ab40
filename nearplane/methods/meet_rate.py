"""Rate control for ECLQ: find the steps at which rate-aware rounding just meets a target rate."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import log2

import torch
from jaxtyping import Float, Float32, Float64, Int32, Int64
from torch import Tensor

from nearplane import codes
from nearplane.lattice import Basis
from nearplane.lattice.float64 import float64_devices, widened
from nearplane.lattice.nearest_plane import scaled_factor
from nearplane.lattice.rate_aware import Prices
from nearplane.lattice.two_sided import RowBlock
from nearplane.methods.rate import (
    LARGEST_CODE,
    NORMAL_BITS,
    TOLERANCE,
    RateError,
    drawn_pull_by_rows,
)
from nearplane.methods.scale_search import CodedMatrix
from nearplane.rows import by_rows, in_parts

PASSES = 4  # sweeps after which the best rate under the target is taken
MOST_PASSES = 20  # sweeps after which RateError is raised
PREDICTION_PASSES = 4  # corrections of the predicted scale
SECANT_SLOPES = (-1.2, -0.6)  # limits of the change in bits per weight when the steps double
# Bits per weight, times 3^-bpw, measured on layers of two small models at 1.5 to 4 bits:
RATE_AWARE_SAVING = 1.14  # rate-aware integers take less than the predicted integers by this
REFIT_SAVING = 0.14  # tables fitted to a sweep's integers take less than predicted ones by this


@dataclass(frozen=True)
class RoundingProblem:
    """A closest-vector problem whose steps are known up to a common scale.

    - `target`, `factor`, `unit_step`: in the basis's order of columns; rows of the target are
      divided by `row_step`.
    - `unit_step`: the steps at scale 1.
    - `invperm`: the inverse of `Basis.columns`, from the basis's order of columns to the record's.
    - `outputs`: the bases of the diagonal blocks of the output Hessian, if it has one.
    """

    target: Float[Tensor, "rows n"]
    factor: Float64[Tensor, "n n"]
    unit_step: Float32[Tensor, "1 n"]
    invperm: Int64[Tensor, " n"]
    row_step: Float32[Tensor, "rows 1"] | None = None
    outputs: Sequence[Basis] = ()

    @cached_property
    def row_blocks(self) -> list[RowBlock]:
        """The diagonal blocks; their factors are those of errors in units of `row_step`."""
        blocks, first = [], 0
        for basis in self.outputs:
            rows = first + basis.columns
            size = 1.0 if self.row_step is None else widened(self.row_step[rows, 0])
            blocks.append(RowBlock(rows, basis.factor * size, self.target.dtype))
            first += len(rows)
        return blocks

    @cached_property
    def smallest_scale(self) -> float:
        """The scale below which an integer could exceed LARGEST_CODE."""

        def largest(rows: slice) -> tuple[Tensor]:
            return ((self.target[rows].abs() / self.unit_step).amax(),)

        return max(float(part) for (part,) in in_parts(largest, len(self.target))) / LARGEST_CODE

    def step(self, scale: float) -> Float32[Tensor, "1 n"]:
        """Return the steps at a scale, rounded to what a record can store."""
        return self.unit_step * codes.round_base(scale)


@dataclass(frozen=True)
class RateSettings:
    """What the user chose: target rate, entropy coder and Lagrange multiplier ν (`slope`)."""

    bpw: int | float
    coder: codes.Rans
    slope: int | float

    def fit(self, code: Int32[Tensor, "rows n"]) -> codes.Tables:
        """Return the coder's tables fitted to these integers."""
        return codes.fit(codes.on_host(code), contexts=self.coder.contexts)

    def prices(self, tables: codes.Tables, columns: Int64[Tensor, " n"]) -> Prices:
        """Return the code lengths of some columns under fitted tables, on their device."""
        classes = (tables.contexts.row, tables.contexts.column)
        row, column = (torch.from_numpy(part.astype("int64")) for part in classes)
        parts = torch.from_numpy(tables.lengths), row, column
        length, row, column = (part.to(columns.device) for part in parts)
        return Prices(length, row, column[columns], self.slope)

    def estimated_excess(
        self, tables: codes.Tables, step: Float32[Tensor, "1 n"], problem: RoundingProblem
    ) -> float:
        """Return the estimated rate minus the target, for the integers that `tables` fit."""
        weights = problem.target.numel()
        step_bytes = codes.step_bytes(step, 0 if problem.row_step is None else len(problem.target))
        stored = codes.record_bytes(step_bytes, tables.likely_bytes(weights))
        return rate_excess(stored, weights, self.bpw)


def rate_excess(stored: int | float, weights: int, bpw: int | float) -> float:
    """Return rate − bpw of a record of `stored` bytes, with its entry in the checkpoint file."""
    return 8 * (stored + codes.ENTRY_BYTES) / weights - bpw


@dataclass(frozen=True)
class RateSolution:
    """Integers that meet a rate, what they were chosen with, and their record.

    - `code`: in the original order of columns.
    - `step`, `prices`: of the sweep that chose them, in the basis's order of columns.
    - `stored`: the record, and how many of its bytes are codes.
    """

    code: Int32[Tensor, "rows columns"]
    step: Float32[Tensor, "1 n"]
    prices: Prices
    stored: tuple[Tensor, int]


Rounding = Callable[[Float32[Tensor, "1 n"], Prices], Int32[Tensor, "rows n"]]


def meet_rate(problem: RoundingProblem, settings: RateSettings, rounding: Rounding) -> RateSolution:
    """Return integers whose record meets the rate from below.

    Code lengths come from predicted integers in the first sweep, and from that sweep's integers in
    all others; to fit them again after each sweep would only trade error for rate. The scale is
    found by the secant method. The result is the first sweep whose rate is at most TOLERANCE under
    the target, or the best of the first PASSES sweeps if one of them is under it.

    - `rounding`: one sweep: steps and code lengths to integers, all in the basis's column order.

    Raises RateError when no scale was found whose rate is low enough.
    """
    scale, tables = predict_scale(problem, settings)
    columns = problem.invperm.argsort()
    # predicted in the basis's order
    prices = settings.prices(tables, torch.arange(len(columns), device=columns.device))
    history: list[tuple[float, float]] = []
    best: RateSolution | None = None
    best_excess = -torch.inf
    for passes in range(1, MOST_PASSES + 1):
        step = problem.step(scale)
        # tables are fitted in the record's order of columns, so that `pack` can use them
        code = CodedMatrix(rounding(step, prices), step).permuted(problem.invperm).code
        tables = settings.fit(code)
        excess = settings.estimated_excess(tables, step, problem)
        if best_excess < excess <= TOLERANCE:
            # only a packed record has an exact rate: pack what is close to the target
            coder = replace(settings.coder, tables=tables)
            record_step = step[:, problem.invperm]
            stored = codes.pack(code, record_step, len(columns), None, coder, problem.row_step)
            excess = rate_excess(len(stored[0]), code.numel(), settings.bpw)
            if excess <= 0:
                best, best_excess = RateSolution(code, step, prices, stored), excess
        if best is not None and (best_excess >= -TOLERANCE or passes >= PASSES):
            return best
        if passes == 1:
            prices = settings.prices(tables, columns)
            excess -= REFIT_SAVING * 3**-settings.bpw if settings.slope else 0.0
        history.append((log2(scale), excess))
        scale = max(2 ** next_scale(history), problem.smallest_scale)
    raise RateError(f"no step was found that stores {settings.bpw:g} bits per weight or fewer")


def next_scale(history: list[tuple[float, float]]) -> float:
    """Return log₂ of the next scale, by the secant method.

    It aims at a rate TOLERANCE / 2 under the target.

    - `history`: log₂ of the scales tried so far, each with its rate minus the target.
    """
    (log_scale, excess), slope = history[-1], -1.0
    if len(history) > 1:
        earlier_scale, earlier_excess = history[-2]
        if abs(log_scale - earlier_scale) > 1e-4:
            slope = (excess - earlier_excess) / (log_scale - earlier_scale)
    # aim further below the target as sweeps go on, so that the search ends
    target_excess = -TOLERANCE / 2 * (1 + len(history) // 6)
    slope = min(max(slope, SECANT_SLOPES[0]), SECANT_SLOPES[1])
    return log_scale + (target_excess - excess) / slope


def root_mean_square(numbers: Tensor) -> float:
    """Return √(mean of squares), summed in float64; without a copy where that is possible."""
    if float64_devices(numbers.device).kept != numbers.device:
        return float(widened(numbers).square().mean().sqrt())
    return float(torch.linalg.vector_norm(numbers, dtype=torch.float64)) / numbers.numel() ** 0.5


def predict_scale(problem: RoundingProblem, settings: RateSettings) -> tuple[float, codes.Tables]:
    """Return a scale predicted to meet the rate, and tables fitted to its predicted integers.

    The rate of the predicted integers falls by about one bit when the scale doubles.
    """
    scaled = problem.target / problem.unit_step.to(problem.target.dtype)
    sigma = root_mean_square(scaled)
    unit = scaled_factor(problem.factor, problem.unit_step, scaled.dtype)
    predicted = predicted_codes(scaled, unit)
    saving = RATE_AWARE_SAVING * 3**-settings.bpw if settings.slope else 0.0
    scale = max(sigma * 2 ** (NORMAL_BITS - settings.bpw), problem.smallest_scale) or 1.0
    for passes in itertools.count(1):
        tables = settings.fit(predicted(scale))
        excess = settings.estimated_excess(tables, problem.step(scale), problem) - saving
        if abs(excess) < 0.01:
            return scale, tables
        scale = max(scale * 2**excess, problem.smallest_scale)
        if passes == PREDICTION_PASSES:
            return scale, tables
    raise AssertionError("unreachable")


def predicted_codes(
    scaled: Float[Tensor, "rows n"], unit: Float[Tensor, "n n"]
) -> Callable[[float], Int32[Tensor, "rows n"]]:
    """Return the function that predicts the integers at a scale, without a sweep.

    A predicted integer is the weight in steps plus a random draw of the pull (`drawn_pull`),
    rounded to nearest.
    """
    pull = drawn_pull_by_rows(unit, len(scaled))

    def predicted(scale: float) -> Int32[Tensor, "rows n"]:
        def rounded(rows: slice) -> tuple[Tensor]:
            return ((scaled[rows] / scale + pull(rows)).round_().int(),)

        return by_rows(rounded, len(scaled))[0]

    return predicted

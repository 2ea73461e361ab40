"""Nearest-plane rounding on a GPU.

The recursion over columns is that of nearplane/lattice/nearest_plane.py. A leaf of the recursion,
at most 32 columns that are rounded one after the other, is one launch of a Triton kernel.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float16, Int32, UInt8
from torch import Tensor

from nearplane import lattice
from nearplane.kernels.gpu.portable.start import Launch, start
from nearplane.lattice.nearest_plane import (
    LEAF,
    Levels,
    Sweep,
    scaled_by_columns,
    sweep_state,
    unit_factor,
)
from nearplane.lattice.rate_aware import Prices, unit_in_steps
from nearplane.precision import exact_products
from nearplane.rows import by_rows, rows_at_once, some_rows

ROWS = 32  # rows of a Triton program, one a thread: the errors of a row stay in its registers
WARPS = 1
MOST_LEVELS = 256  # that a leaf searches


@dataclass(frozen=True)
class TritonSweep(Sweep):
    """A sweep over columns whose leaves are rounded by a Triton kernel.

    - `code`: the codes, written by the leaves.
    - `rounding`: how the kernel rounds.
    """

    code: Int32[Tensor, "n rows"]
    rounding: "Rounding"

    def leaf(self, first: int, end: int) -> None:
        """Round columns first .. end − 1, the last one first."""
        tensors = {
            "target": self.target,
            "unit": self.unit,
            "best": self.best,
            "error": self.error,
            "code": self.code,
        }
        n, rows = self.target.shape
        start(self.rounding.launch(rows, n, first, end), **tensors, **self.rounding.tensors())


@dataclass(frozen=True)
class Rounding:
    """How a leaf rounds: to the nearest integer in low .. high, to a level, or beyond a threshold.

    - `step`: the step of every element; None if all steps are 1.
    - `table`: levels in ascending order; or, with `at_row`, thresholds by context: x is rounded up
      if x − ⌊x⌋ exceeds threshold[context, ⌊x⌋], where ⌊x⌋ is clipped to −span − 1 .. span.
    - `at_row`, `at_column`: at_row[i] + at_column[j] + ⌊x⌋ is the index into the flat thresholds.
    - `outlier`, `is_outlier`: written by the leaves, where what is clipped off is kept.
    """

    low: int | None = None
    high: int | None = None
    step: Float[Tensor, "n rows"] | None = None
    table: Float[Tensor, "..."] | None = None
    at_row: Int32[Tensor, " rows"] | None = None
    at_column: Int32[Tensor, " n"] | None = None
    span: int = 0
    outlier: Float16[Tensor, "n rows"] | None = None
    is_outlier: UInt8[Tensor, "n rows"] | None = None

    def tensors(self) -> dict[str, Tensor | None]:
        names = ("step", "table", "at_row", "at_column", "outlier", "is_outlier")
        return {name: getattr(self, name) for name in names}

    def launch(self, rows: int, n: int, first: int, end: int) -> Launch:
        """Return the launch parameters for columns first .. end − 1."""
        priced = self.at_row is not None
        levels = 0 if priced or self.table is None else len(self.table)
        numbers = {"low": self.low or 0, "high": self.high or 0, "span": self.span}
        numbers |= {"levels": levels, "rows": rows, "n": n, "first": first, "end": end}
        constants = {
            "LOW": self.low is not None,
            "HIGH": self.high is not None,
            "STEP": self.step is not None,
            "PRICED": priced,
            "LEVELS": 1 << (levels - 1).bit_length() if levels else 0,
            "OUTLIERS": self.outlier is not None,
            "COUNT": LEAF,
            "ROWS": ROWS,
        }
        grid = (-(-rows // ROWS),)
        return Launch("leaf", grid, numbers, constants, warps=WARPS, fuses=False)


def nearest_plane(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "#rows #n"],
    low: int | None = None,
    high: int | None = None,
) -> Int32[Tensor, "rows n"]:
    """Return what `lattice.nearest_plane` returns."""
    step = step.to(target.dtype)
    unit = unit_factor(scaled_by_columns(factor, step, target.dtype))

    def rounded(rows: slice) -> Tensor:
        some, own = target[rows], some_rows(step, rows)
        if 1 in step.shape:
            # on a lattice of step 1, as round_with_unit_step of lattice.nearest_plane
            return round_columns((some / own).T.contiguous(), unit, Rounding(low, high))
        rounding = Rounding(low, high, step=own.expand_as(some).T.contiguous())
        return round_columns(some.T.contiguous(), unit, rounding)

    return by_large_pieces(rounded, target)


def nearest_plane_among(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "rows n"],
    levels: Levels,
) -> Int32[Tensor, "rows n"]:
    """Return what `lattice.nearest_plane_among` returns."""
    unit = unit_factor(factor.to(target.dtype))
    limits = (None, None) if levels.values is not None else (levels.low, levels.high)

    def rounded(rows: slice) -> Tensor:
        rounding = Rounding(*limits, step=step[rows].T.contiguous(), table=levels.values)
        return round_columns(target[rows].T.contiguous(), unit, rounding)

    return by_large_pieces(rounded, target)


def nearest_plane_with_outliers(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "rows n"],
    low: int,
    high: int,
) -> tuple[Int32[Tensor, "rows n"], Float16[Tensor, "rows n"], Bool[Tensor, "rows n"]]:
    """Return what `lattice.nearest_plane_with_outliers` returns."""
    columns = target.T.contiguous()
    outlier = torch.empty_like(columns, dtype=torch.float16)
    is_outlier = torch.empty_like(columns, dtype=torch.uint8)
    rounding = Rounding(low, high, step=step.T.contiguous(), outlier=outlier, is_outlier=is_outlier)
    code = round_columns(columns, unit_factor(factor.to(target.dtype)), rounding)
    return code, outlier.T, is_outlier.view(torch.bool).T


def rate_aware_plane(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "#rows n"],
    prices: Prices,
    unit: Float[Tensor, "n n"] | None = None,
) -> Int32[Tensor, "rows n"]:
    """Return what `lattice.rate_aware_plane` returns."""
    step = step.to(target.dtype)
    if unit is None:
        unit = unit_in_steps(factor, step, target.dtype)
    threshold = prices.thresholds().to(target.dtype)
    width, span = threshold.shape[1], prices.span
    at_column = (prices.column * width).to(torch.int32)

    def rounded(rows: slice) -> Tensor:
        at_row = (prices.row[rows] * width + span + 1).to(torch.int32)
        rounding = Rounding(table=threshold, at_row=at_row, at_column=at_column, span=span)
        in_steps = (target[rows] / some_rows(step, rows)).T.contiguous()
        return round_columns(in_steps, unit, rounding)

    return by_large_pieces(rounded, target)


def by_large_pieces(
    rounded: Callable[[slice], Tensor], target: Float[Tensor, "rows n"]
) -> Int32[Tensor, "rows n"]:
    """Return rounded(slice(0, rows)), computed in pieces of rows that processes can share."""
    rows, at_once = len(target), rows_at_once(target.shape[1], target.device)
    return by_rows(lambda part: (rounded(part),), rows, at_once=at_once)[0]


def round_columns(
    columns: Float[Tensor, "n rows"], unit: Float[Tensor, "n n"], rounding: Rounding
) -> Int32[Tensor, "rows n"]:
    """Return the codes of a transposed target."""
    code = torch.empty_like(columns, dtype=torch.int32)
    walk = TritonSweep(*sweep_state(columns, unit.contiguous()), code, rounding)
    with exact_products(columns.device):
        walk.solve(0, len(columns))
    return code.T.contiguous()


@functools.cache
def has_triton() -> bool:
    """Return whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def on_gpu(target: Tensor, factor: Tensor, *others: Any, **named: Any) -> bool:
    """Return whether the Triton kernels can round a target."""
    wide = target.dtype in (torch.float32, torch.float64)
    return wide and target.is_cuda and factor.is_cuda and target.numel() > 0 and has_triton()


def _few_levels(target: Tensor, factor: Tensor, step: Tensor, levels: Levels) -> bool:
    few = levels.values is None or len(levels.values) <= MOST_LEVELS
    return few and on_gpu(target, factor)


lattice.nearest_plane.version("triton", on_gpu)(nearest_plane)
lattice.nearest_plane_among.version("triton", _few_levels)(nearest_plane_among)
lattice.nearest_plane_with_outliers.version("triton", on_gpu)(nearest_plane_with_outliers)
lattice.rate_aware_plane.version("triton", on_gpu)(rate_aware_plane)

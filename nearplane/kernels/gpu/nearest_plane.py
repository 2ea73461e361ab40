"""Nearest-plane rounding on a GPU.

The recursion over columns is that of nearplane/lattice/nearest_plane.py. A leaf of the recursion,
at most 32 columns that are rounded one after the other, is one launch of a Triton kernel.
"""

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from nearplane import lattice
from nearplane.kernels.gpu.portable.start import Launch, start
from nearplane.lattice.nearest_plane import LEAF, Sweep, scaled_factor, sweep_state
from nearplane.lattice.rate_aware import Prices
from nearplane.rows import Work, by_rows, rows_at_once, some_rows

ROWS = 32  # rows of a Triton program, one a thread: the errors of a row stay in its registers
WARPS = 1


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
    """How a leaf rounds: to the nearest integer in low .. high, or up beyond a threshold.

    - `step`: the step of every element; None if all steps are 1.
    - `threshold`: round x up if x − ⌊x⌋ exceeds threshold[context, ⌊x⌋], where ⌊x⌋ is clipped to
      −span − 1 .. span; None: round to nearest.
    - `at_row`, `at_column`: at_row[i] + at_column[j] + ⌊x⌋ is the index into the flat thresholds.
    """

    low: int | None = None
    high: int | None = None
    step: Float[Tensor, "n rows"] | None = None
    threshold: Float[Tensor, "contexts symbols"] | None = None
    at_row: Int32[Tensor, " rows"] | None = None
    at_column: Int32[Tensor, " n"] | None = None
    span: int = -1

    def tensors(self) -> dict[str, Tensor | None]:
        names = ("step", "threshold", "at_row", "at_column")
        return {name: getattr(self, name) for name in names}

    def launch(self, rows: int, n: int, first: int, end: int) -> Launch:
        """Return the launch parameters for columns first .. end − 1."""
        numbers = {"low": self.low or 0, "high": self.high or 0}
        numbers |= {"rows": rows, "n": n, "first": first, "end": end}
        constants = {
            "LOW": self.low is not None,
            "HIGH": self.high is not None,
            "STEP": self.step is not None,
            "SPAN": self.span,
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
    step, by_columns = step.to(target.dtype), 1 in step.shape and step.shape[1] > 1
    scaled = scaled_factor(factor, step, target.dtype) if by_columns else factor

    def rounded(rows: slice) -> tuple[Tensor]:
        some, own = target[rows], some_rows(step, rows)
        if 1 not in step.shape:
            own = own.expand_as(some).T.contiguous()
            return (_round_columns(some, scaled, Rounding(low, high, own)),)
        # on a lattice of step 1, as in round_with_unit_step of lattice.nearest_plane
        return (_round_columns(some / own, scaled, Rounding(low, high)),)

    return _in_few_pieces(rounded, target)


def rate_aware_plane(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "#rows n"],
    prices: Prices,
) -> Int32[Tensor, "rows n"]:
    """Return what `lattice.rate_aware_plane` returns."""
    threshold = prices.thresholds().to(target)
    width = threshold.shape[1]
    at_row = (prices.row * width + prices.span + 1).to(target.device, torch.int32)
    at_column = (prices.column * width).to(target.device, torch.int32)
    scaled = scaled_factor(factor, step[:1], target.dtype)

    def rounded(rows: slice) -> tuple[Tensor]:
        places = at_row[rows], at_column
        rounding = Rounding(None, None, None, threshold, *places, prices.span)
        some = target[rows] / some_rows(step, rows).to(target.dtype)
        return (_round_columns(some, scaled, rounding),)

    return _in_few_pieces(rounded, target)


def _in_few_pieces(rounded: Work, target: Float[Tensor, "rows n"]) -> Int32[Tensor, "rows n"]:
    """Round as many rows at a time as keep a GPU busy: each piece takes several times its memory.

    - `rounded`: returns the codes of some rows.
    """
    at_once = rows_at_once(target.shape[1], target.device)
    return by_rows(rounded, len(target), at_once=at_once)[0]


def _round_columns(
    target: Float[Tensor, "rows n"], factor: Float[Tensor, "n n"], rounding: Rounding
) -> Int32[Tensor, "rows n"]:
    columns = target.T.contiguous()
    code = torch.empty_like(columns, dtype=torch.int32)
    walk = TritonSweep(*sweep_state(columns, factor.to(target.dtype)), code, rounding)
    with full_precision():
        walk.solve(0, len(columns))
    return code.T.contiguous()


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products on a GPU in float32, even if the user has allowed TF32."""
    products = torch.backends.cuda.matmul
    # torch renamed the setting in 2.9, and refuses a mixture of both names
    name, exact = ("fp32_precision", "ieee")
    if not hasattr(products, name):
        name, exact = ("allow_tf32", False)
    before = getattr(products, name)
    setattr(products, name, exact)
    try:
        yield
    finally:
        setattr(products, name, before)


@functools.cache
def has_triton() -> bool:
    """Return whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def _serves(target: Tensor, factor: Tensor, *others: Any, **named: Any) -> bool:
    wide = target.dtype in (torch.float32, torch.float64)
    return wide and target.is_cuda and factor.is_cuda and target.numel() > 0 and has_triton()


lattice.nearest_plane.version("triton", _serves)(nearest_plane)
lattice.rate_aware_plane.version("triton", _serves)(rate_aware_plane)

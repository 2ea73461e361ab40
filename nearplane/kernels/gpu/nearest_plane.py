"""Nearest plane on a GPU: its walk as it is, with a Triton kernel for each leaf."""

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
from nearplane.lattice.nearest_plane import LEAF, Sweep, sweep_state
from nearplane.lattice.rate_aware import Prices

ROWS = 32  # of a program, one a lane: errors of a row stay in its registers
WARPS = 1


@dataclass(frozen=True)
class Launched(Sweep):
    """A walk whose leaves are one launch each.

    - `code`: what it chooses.
    - `rounding`: what the kernel rounds by.
    """

    code: Int32[Tensor, "n rows"]
    rounding: "Rounding"

    def leaf(self, first: int, end: int) -> None:
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
    """How a leaf rounds: to the nearest integers between limits, or by thresholds.

    - `step`: of every element; None for a lattice of step 1.
    - `threshold`, `at_row`, `at_column`: where integers change, and where a row's and a column's
      are; `span` integers to either side of 0 have one of their own.
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
        """Return the start of one leaf."""
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
    step = step.to(target.dtype)
    if 1 not in step.shape:
        own = step.expand_as(target).T.contiguous()
        return _walked(target, factor, Rounding(low, high, own))
    # on a lattice of step 1, as in lattice.nearest_plane.unit_lattice
    scaled = factor * step if step.shape[1] > 1 else factor
    return _walked(target / step, scaled, Rounding(low, high))


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
    rounding = Rounding(None, None, None, threshold, at_row, at_column, prices.span)
    return _walked(target / step.to(target.dtype), factor * step[:1], rounding)


def _walked(
    target: Float[Tensor, "rows n"], factor: Float[Tensor, "n n"], rounding: Rounding
) -> Int32[Tensor, "rows n"]:
    columns = target.T.contiguous()
    code = torch.empty_like(columns, dtype=torch.int32)
    walk = Launched(*sweep_state(columns, factor.to(target.dtype)), code, rounding)
    with full_precision():
        walk.solve(0, len(columns))
    return code.T.contiguous()


@contextmanager
def full_precision() -> Iterator[None]:
    """Let float32 products on a GPU have all bits of float32, whatever a user allows elsewhere."""
    products = torch.backends.cuda.matmul
    # torch knows the setting by another name since 2.9, and refuses a mixture of both
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
    return importlib.util.find_spec("triton") is not None


def _serves(target: Tensor, factor: Tensor, *others: Any, **named: Any) -> bool:
    wide = target.dtype in (torch.float32, torch.float64)
    return wide and target.is_cuda and factor.is_cuda and target.numel() > 0 and has_triton()


lattice.nearest_plane.version("triton", _serves)(nearest_plane)
lattice.rate_aware_plane.version("triton", _serves)(rate_aware_plane)

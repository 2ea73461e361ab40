"""Nearest plane on a CPU: its walk as it is, with a C++ kernel for each leaf."""

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from nearplane import lattice
from nearplane.kernels.cpu.library import Leaf, library
from nearplane.lattice.nearest_plane import Sweep, scaled_factor, sweep_state, tiles
from nearplane.lattice.rate_aware import Prices, priced_tiles
from nearplane.rows import by_rows, some_rows


@dataclass(frozen=True)
class Rounded(Sweep):
    """A walk whose leaves are one call each.

    - `code`: what it chooses.
    - `rounding`: the fields of the library's Leaf that say how.
    """

    code: Int32[Tensor, "n rows"]
    rounding: dict[str, Any]

    def leaf(self, first: int, end: int) -> None:
        columns, rows = self.target.shape
        tensors = {
            name: getattr(self, name) for name in ("target", "unit", "best", "error", "code")
        }
        tensors |= {name: x for name, x in self.rounding.items() if isinstance(x, Tensor)}
        numbers = {name: x for name, x in self.rounding.items() if not isinstance(x, Tensor)}
        leaf = Leaf(
            rows=rows,
            columns=columns,
            first=first,
            end=end,
            wide=self.target.dtype == torch.float64,
            **numbers,
            **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        )
        library().np_leaf(ctypes.byref(leaf))


def nearest_plane(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "#rows #n"],
    low: int | None = None,
    high: int | None = None,
) -> Int32[Tensor, "rows n"]:
    """Return what `lattice.nearest_plane` returns."""
    limits = {
        "low": -math.inf if low is None else float(low),
        "high": math.inf if high is None else float(high),
    }
    step = step.to(target.dtype)
    unit = 1 in step.shape  # on a lattice of step 1, as lattice.nearest_plane.unit_lattice
    scaled = scaled_factor(factor, step, target.dtype) if step.shape[1] > 1 and unit else factor

    def rounded(rows: slice) -> tuple[Tensor]:
        parts = []
        for some, own in tiles(target[rows], some_rows(step, rows)):
            if unit:
                parts.append(walked(some / own, scaled, limits))
            else:
                steps = own.expand_as(some).T.contiguous()
                parts.append(walked(some, scaled, limits | {"step": steps}))
        return (torch.cat(parts),)

    return by_rows(rounded, len(target))[0]


def rate_aware_plane(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "#rows n"],
    prices: Prices,
) -> Int32[Tensor, "rows n"]:
    """Return what `lattice.rate_aware_plane` returns."""
    step = step.to(target.dtype)
    scaled = scaled_factor(factor, step[:1], target.dtype)
    threshold = prices.thresholds().to(target.dtype).contiguous()
    width = threshold.shape[1]
    same = {"threshold": threshold, "span": prices.span, "at_column": (prices.column * width).int()}

    def rounded(rows: slice) -> tuple[Tensor]:
        parts = []
        for some, own, priced in priced_tiles(target[rows], some_rows(step, rows), prices.of(rows)):
            at_row = (priced.row * width + prices.span + 1).int()
            parts.append(walked(some / own, scaled, same | {"at_row": at_row}))
        return (torch.cat(parts),)

    return by_rows(rounded, len(target))[0]


def walked(
    target: Float[Tensor, "rows n"], factor: Float[Tensor, "n n"], rounding: dict[str, Any]
) -> Int32[Tensor, "rows n"]:
    """Return the integers of few rows."""
    columns = target.T.contiguous()
    code = torch.empty_like(columns, dtype=torch.int32)
    walk = Rounded(*sweep_state(columns, factor.to(target.dtype).contiguous()), code, rounding)
    walk.solve(0, len(columns))
    return code.T.contiguous()


def _serves(target: Tensor, factor: Tensor, *others: Any, **named: Any) -> bool:
    wide = target.dtype in (torch.float32, torch.float64)
    return wide and target.device.type == "cpu" and target.numel() > 0


lattice.nearest_plane.version("cpu", _serves)(nearest_plane)
lattice.rate_aware_plane.version("cpu", _serves)(rate_aware_plane)

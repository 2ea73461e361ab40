"""Nearest-plane rounding on a CPU.

The recursion over columns is that of nearplane/lattice/nearest_plane.py. A leaf of the recursion,
at most 32 columns that are rounded one after the other, is one call of a C++ kernel.
"""

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from nearplane import lattice
from nearplane.kernels.cpu.library import Leaf, kernels
from nearplane.lattice.nearest_plane import (
    Sweep,
    scaled_by_columns,
    sweep_state,
    tiles,
    unit_factor,
)
from nearplane.lattice.rate_aware import Prices, priced_tiles, unit_in_steps
from nearplane.rows import by_rows, some_rows


@dataclass(frozen=True)
class CpuSweep(Sweep):
    """A sweep over columns whose leaves are rounded in C++.

    - `code`: the codes, written by the leaves.
    - `rounding`: the fields of `library.Leaf` that say how to round.
    """

    code: Int32[Tensor, "n rows"]
    rounding: dict[str, Any]

    def leaf(self, first: int, end: int) -> None:
        """Round columns first .. end − 1, the last one first."""
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
        kernels().np_leaf(ctypes.byref(leaf))


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
    unit = unit_factor(scaled_by_columns(factor, step, target.dtype)).contiguous()

    def rounded(rows: slice) -> tuple[Tensor]:
        parts = []
        for some, own in tiles(target[rows], some_rows(step, rows)):
            if 1 in step.shape:
                # divide by the steps first, as round_with_unit_step of lattice.nearest_plane does
                parts.append(round_tile(some / own, unit, limits))
            else:
                steps = own.expand_as(some).T.contiguous()
                parts.append(round_tile(some, unit, limits | {"step": steps}))
        return (torch.cat(parts),)

    return by_rows(rounded, len(target))[0]


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
    unit = unit.contiguous()
    threshold = prices.thresholds().to(target.dtype).contiguous()
    width = threshold.shape[1]
    same = {"threshold": threshold, "span": prices.span, "at_column": (prices.column * width).int()}

    def rounded(rows: slice) -> tuple[Tensor]:
        parts = []
        for some, own, priced in priced_tiles(target[rows], some_rows(step, rows), prices.of(rows)):
            at_row = (priced.row * width + prices.span + 1).int()
            parts.append(round_tile(some / own, unit, same | {"at_row": at_row}))
        return (torch.cat(parts),)

    return by_rows(rounded, len(target))[0]


def round_tile(
    target: Float[Tensor, "rows n"], unit: Float[Tensor, "n n"], rounding: dict[str, Any]
) -> Int32[Tensor, "rows n"]:
    """Return the codes of one tile of rows."""
    columns = target.T.contiguous()
    code = torch.empty_like(columns, dtype=torch.int32)
    walk = CpuSweep(*sweep_state(columns, unit), code, rounding)
    walk.solve(0, len(columns))
    return code.T.contiguous()


def _serves(target: Tensor, factor: Tensor, *others: Any, **named: Any) -> bool:
    wide = target.dtype in (torch.float32, torch.float64)
    return wide and target.device.type == "cpu" and target.numel() > 0


lattice.nearest_plane.version("cpu", _serves)(nearest_plane)
lattice.rate_aware_plane.version("cpu", _serves)(rate_aware_plane)

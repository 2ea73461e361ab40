"""GGUF: nearest plane onto the values that the blocks of a GGUF file can hold."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nearplane.codes.block_types import GRIDS, BlockGrid, grid_of
from nearplane.codes.dense import signed_width, width_of
from nearplane.lattice import Basis
from nearplane.lattice.float64 import narrowed, widened
from nearplane.lattice.nearest_plane import nearest_plane_among
from nearplane.methods import fixed_width
from nearplane.methods.block_steps import (
    block_steps,
    effective_bits,
    levels_of,
    mixed_grids,
)
from nearplane.methods.certificate import bound_around, certify_rows, measure
from nearplane.methods.eclq import ECLQ
from nearplane.methods.fixed_width import quantized_weight
from nearplane.methods.method import (
    LatticeMethod,
    OutOfRangeError,
    Target,
    check_order,
    check_range,
)
from nearplane.types import QuantizedWeight, spread


@dataclass(frozen=True)
class GGUF(LatticeMethod):
    """Nearest plane onto the blocks of a GGUF file, which `nearplane export` writes as they are.

    Each integer is the nearest of the type's levels to what would make up for the errors before
    it; steps, and the minima of types that have some, are the type's, chosen beforehand to minimise
    Σ R_jj² (w_j − s·level_j + m)², what rounding column j to nearest adds to the loss. In a model,
    each layer is rounded towards a target that compensates for the errors of the layers in front of
    it (`lattice.cross_target`). A row with a clipped integer has no bound.

    - `type`: the type of blocks: Q2_K, Q3_K, IQ4_XS, Q4_K, IQ4_NL, Q4_0, Q4_1, Q5_K, Q5_0, Q5_1,
      Q6_K or Q8_0. Those of 256 columns give way to llama.cpp's choice where 256 does not divide
      a row.
    - `mixed`: bits per weight on average, where each layer gets a type by how much its errors
      change the model's predictions; 0 for one type.
    - `targets`: False rounds every layer towards its own weight, and not so that it makes up for
      the errors of the layers before it.

    Raises OutOfRangeError for another type, and for `mixed` above 16.
    """

    type: str = "Q4_K"
    mixed: float = 0.0
    order: str = "activation"
    damping: float = 0.1
    targets: bool = True

    def __post_init__(self) -> None:
        if self.type not in GRIDS:
            raise OutOfRangeError(f"type must be one of {', '.join(GRIDS)}, not {self.type!r}")
        check_range("mixed", self.mixed, 0, 16)
        check_order(self.order)
        check_range("damping", self.damping, 0, 1000)

    triangular_solves: ClassVar[int] = 1
    target_certificates: ClassVar[int] = 2

    def grid(self, columns: int) -> BlockGrid:
        """Return the type of a layer with so many columns."""
        if not self.mixed:
            return grid_of(self.type, columns)
        grids = mixed_grids(columns)
        return [grids[0], *(g for g in grids if g.bits <= self.mixed + 1e-6)][-1]

    def rates(self, columns: int) -> Mapping[float, float] | None:
        grids = mixed_grids(columns) if self.mixed else []
        return {grid.bits: effective_bits(grid) for grid in grids} or None

    @property
    def rate(self) -> float | None:
        return self.mixed or None

    def with_bpw(self, bpw: float) -> "GGUF":
        return replace(self, mixed=bpw)

    @property
    def allocates(self) -> bool:
        return self.mixed > 0

    @property
    def compensates(self) -> bool:
        return self.targets

    def floor(self, rows: int, columns: int) -> float:
        return mixed_grids(columns)[0].bits if self.mixed else 0.0

    def stored_bytes(self, rows: int, columns: int) -> float:
        if self.mixed:
            return rows * columns * self.mixed / 8
        return rows * columns * self.grid(columns).bits / 8

    def quantize(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> QuantizedWeight:
        return self.quantize_towards(weight, basis, Target(weight))

    def quantize_towards(
        self, weight: Float[Tensor, "rows columns"], basis: Basis, target: Target
    ) -> QuantizedWeight:
        weight, columns = self.checked(weight, basis), weight.shape[1]
        matrix, grid = target.matrix.to(weight.dtype), self.grid(columns)
        invperm = basis.columns.argsort()
        exact = matrix.float()
        importance = narrowed(basis.pivots.square(), exact)
        size, dtype = min(grid.group, columns), weight.dtype
        step, minimum = block_steps(grid, exact, importance)
        wide, less = (
            None if part is None else spread(part, size, columns).to(dtype).expand_as(weight)
            for part in (step, minimum)
        )
        assert wide is not None
        wide, raised = wide[:, basis.columns], matrix if less is None else matrix + less
        levels = levels_of(grid, matrix)
        code = nearest_plane_among(raised[:, basis.columns], basis.factor, wide, levels)

        def value(rows: slice) -> Tensor:
            found = (code[rows] * wide[rows])[:, invperm]
            return found if less is None else found - less[rows]

        def sides(rows: slice) -> Tensor:
            return basis.factor.diagonal() * widened(wide[rows]).abs() * widest_gap(grid)

        losses = to_target = measure(matrix, value, basis, sides)
        target_loss = torch.zeros_like(to_target.damped)
        if target.matrix is not weight:
            losses = measure(weight, value, basis)
            target_loss = measure(weight, matrix.__getitem__, basis).damped
        bound, void = certify_rows(to_target)
        original = code[:, invperm].contiguous()
        bits = width_of(grid.highest)
        if minimum is None:
            bits = signed_width(int(original.min()), int(original.max()))
        stored = fixed_width.pack(original, step, size, bits, minimum=minimum)
        certificate = bound_around(bound, target_loss), void
        made = quantized_weight((original, step, size), stored, losses, certificate, basis)
        facts = target.facts | {"aside": float(target_loss.sum()), "file_bits": grid.bits}
        return replace(made.noting(**facts), minimum=minimum)

    def drawn_error(
        self, target: Target, basis: Basis, bpw: float, draws: Any
    ) -> Float[Tensor, "rows columns"]:
        like = ECLQ(order=self.order, damping=self.damping, unequal=False, two_sided=False)
        return like.drawn_error(target, basis, bpw, draws)


def widest_gap(grid: BlockGrid) -> int:
    """Return the largest distance between neighbouring levels."""
    return max((b - a for a, b in zip(grid.levels, grid.levels[1:], strict=False)), default=1)

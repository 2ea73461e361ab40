"""A random matrix for the trial of a method, rounded as a run would round a layer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nearplane.lattice import Basis
from nearplane.methods import Method, Target
from nearplane.rows import TILE
from nearplane.types import QuantizedWeight
from nearplane.walk.output_hessians import blocks_of

RANK = 16  # columns for every common factor of the inputs
COLUMN_SPREAD, ROW_SPREAD = 0.5, 0.3  # of logarithms


@dataclass(frozen=True)
class TrialMatrix:
    """A weight, the basis of its inputs, and its output Hessian if the method takes one."""

    method: Method
    weight: Tensor
    basis: Basis
    output_hessian: tuple[Tensor, ...] = ()

    @classmethod
    def of(
        cls, method: Method, seed: int, rows: int, columns: int, device: str | torch.device = "cpu"
    ) -> "TrialMatrix":
        weight, hessian = problem(seed, columns, rows)
        outputs = output_hessians(seed, rows) if method.weighs_outputs else ()
        there = [part.to(device) for part in (weight, hessian, *outputs)]
        return cls(method, there[0], method.basis(there[1]), tuple(there[2:]))

    def quantize(self) -> QuantizedWeight:
        """Return the weight quantized as a layer of a model is."""
        if self.output_hessian:
            target = Target(self.weight, output_hessian=self.output_hessian)
            return self.method.quantize_towards(self.weight, self.basis, target)
        return self.method(self.weight, self.basis)


def rows_of(method: Method) -> int:
    """Return the rows of a trial: a tile, or two where rows make up for each other."""
    return 2 * TILE if method.weighs_outputs else TILE


def problem(seed: int, columns: int, rows: int = TILE) -> tuple[Tensor, Tensor]:
    """Return a random weight and Hessian on which searches take about as long as on a layer's.

    Inputs are correlated; columns and rows are of unequal size.
    """
    draws = torch.Generator().manual_seed(seed)
    x = correlated(columns, draws)
    weight = torch.randn(rows, columns, generator=draws)
    weight *= 0.02 * torch.exp(ROW_SPREAD * torch.randn(rows, 1, generator=draws))
    return weight, x.T @ x / len(x)


def output_hessians(seed: int, rows: int) -> tuple[Tensor, ...]:
    """Return the diagonal blocks of a random output Hessian, in units of its mean diagonal."""
    draws = torch.Generator().manual_seed(seed + 1)
    sizes = [rows_.stop - rows_.start for rows_ in blocks_of(rows)]
    gradients = [correlated(size, draws) for size in sizes]
    found = [g.T @ g / len(g) for g in gradients]
    return tuple(block / block.diagonal().mean() for block in found)


def correlated(columns: int, draws: torch.Generator) -> Tensor:
    """Return twice as many random vectors as they have entries, with common factors."""
    factors = max(columns // RANK, 1)
    common = torch.randn(2 * columns, factors, generator=draws)
    mixed = common @ torch.randn(factors, columns, generator=draws) / factors**0.5
    x = mixed + torch.randn(2 * columns, columns, generator=draws)
    return x * torch.exp(COLUMN_SPREAD * torch.randn(columns, generator=draws))

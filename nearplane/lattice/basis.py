"""A Hessian made ready for rounding: its order and its factor, shared by every method."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from nearplane.lattice.damping import damp
from nearplane.lattice.factor import NotPositiveDefiniteError, factor
from nearplane.lattice.order import order as order_columns

SMALLEST = 1e-7
RETRIES = 4  # times that damping grows tenfold before a Hessian is given up


@dataclass(frozen=True)
class Basis:
    """The lattice that a layer's inputs define.

    - `columns`: order.flip(0), the original column of each of the factor's columns.
    - `factor`: upper triangular R, RᵀR = the damped Hessian on `columns`.
    - `damping`: the fraction that the factor needed, at least the one asked for.
    """

    hessian: Float[Tensor, "n n"]
    columns: Int64[Tensor, " n"]
    factor: Float64[Tensor, "n n"]
    damping: float

    @property
    def pivots(self) -> Float64[Tensor, " n"]:
        """R_jj of every original column."""
        return self.factor.diagonal()[self.columns.argsort()]

    def losses(
        self, error: Float[Tensor, "rows n"]
    ) -> tuple[Float64[Tensor, " rows"], Float64[Tensor, " rows"]]:
        """Return error · hessian · errorᵀ of every row, undamped and damped."""
        # products in the error's own precision, sums over columns in float64
        undamped = ((error @ self.hessian.to(error.dtype)) * error).sum(1, dtype=torch.float64)
        added = self.damping * self.hessian.diagonal().double().mean()
        return undamped, undamped + added * error.square().sum(1, dtype=torch.float64)


def basis(hessian: Float[Tensor, "n n"], order: str, damping: float) -> Basis:
    """Return the basis of `hessian`, with damping grown tenfold up to RETRIES times if it must be.

    Damping 0 grows from SMALLEST.

    Raises NotPositiveDefiniteError when no damping tried gives a factor.
    """
    for retry in range(RETRIES + 1):
        grown = (damping or SMALLEST * bool(retry)) * 10**retry
        try:
            columns = order_columns(hessian, order, grown).flip(0)
            return Basis(hessian, columns, factor(hessian, columns.flip(0), grown), grown)
        except NotPositiveDefiniteError:
            if retry == RETRIES or not torch.isfinite(hessian).all():
                raise
    raise AssertionError("unreachable")


def damped_hessian(of: Basis) -> Float64[Tensor, "n n"]:
    """Return the damped Hessian on the original columns."""
    return damp(of.hessian, of.damping)

"""A Hessian prepared for rounding: column order and Cholesky factor, as every method needs them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from nearplane.lattice.damping import damp, diagonal_shift
from nearplane.lattice.factor import NotPositiveDefiniteError, factor
from nearplane.lattice.float64 import widened
from nearplane.lattice.order import order as order_columns

LEAST_DAMPING = 1e-7  # what retries grow from where the damping asked for is 0
RETRIES = 4  # how often damping grows tenfold before an error is raised


@dataclass(frozen=True)
class Basis:
    """The lattice basis that a layer's inputs define, before it is scaled by steps.

    - `hessian`: as given, without damping and on the original columns.
    - `columns`: order.flip(0); factor column k belongs to original column columns[k].
    - `factor`: upper triangular R, RᵀR = the damped Hessian on `columns`; it may lie on another
      device than the others (`float64_devices`).
    - `damping`: the fraction that was added; larger than asked for if that gave no factor.
    """

    hessian: Float[Tensor, "n n"]
    columns: Int64[Tensor, " n"]
    factor: Float64[Tensor, "n n"]
    damping: float

    @property
    def pivots(self) -> Float64[Tensor, " n"]:
        """R_jj for every column, in the original order of columns."""
        return self.factor.diagonal()[self.columns.argsort().to(self.factor.device)]

    def losses(
        self, error: Float[Tensor, "rows n"]
    ) -> tuple[Float64[Tensor, " rows"], Float64[Tensor, " rows"]]:
        """Return error · hessian · errorᵀ of every row, undamped and damped."""
        # the products are in the error's own type, the sums over columns in float64
        undamped = widened((error @ self.hessian.to(error.dtype)) * error).sum(1)
        shift = diagonal_shift(self.hessian, self.damping, undamped.device)
        return undamped, undamped + shift * widened(error.square()).sum(1)


def basis(hessian: Float[Tensor, "n n"], order: str, damping: float) -> Basis:
    """Return the basis of `hessian`; while it has no factor, try ten times the damping.

    At most RETRIES times; a damping of 0 is followed by 10 · LEAST_DAMPING.

    Raises NotPositiveDefiniteError when none of these gives a factor.
    """
    for retry in range(RETRIES + 1):
        grown = (damping or LEAST_DAMPING * bool(retry)) * 10**retry
        try:
            columns = order_columns(hessian, order, grown).flip(0)
            return Basis(hessian, columns, factor(hessian, columns.flip(0), grown), grown)
        except NotPositiveDefiniteError:
            if retry == RETRIES or not torch.isfinite(hessian).all():
                raise
    raise AssertionError("unreachable")


def damped_hessian(layer_basis: Basis) -> Float64[Tensor, "n n"]:
    """Return the damped Hessian, in the original order of columns."""
    return damp(layer_basis.hessian, layer_basis.damping)

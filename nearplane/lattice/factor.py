"""The Cholesky factor of a Hessian: its columns span the lattice that nearest plane rounds on."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from nearplane.lattice.damping import diagonal_shift, symmetric
from nearplane.lattice.float64 import float64_devices
from nearplane.types import NearplaneError


class NotPositiveDefiniteError(NearplaneError):
    """The damped Hessian has no Cholesky factor; the message names the likely cause."""


def factor(
    hessian: Tensor, order: Int64[Tensor, " columns"], damping: float
) -> Float64[Tensor, "columns columns"]:
    """Return the upper triangular R with RᵀR = the damped Hessian on columns order.flip(0).

    The order's first entry is R's last column, where nearest plane starts. It takes one float64
    Cholesky factorization; unlike GPTQ's usual form, no inverse.

    Raises NotPositiveDefiniteError when the damped Hessian has no factor.

    Cost: columns³ / 3 multiply-adds.
    """
    columns, devices = order.flip(0), float64_devices(hessian.device)
    # one float64 matrix, overwritten in place, to need little memory
    damped = symmetric(hessian[columns][:, columns].to(devices.cubic))
    damped.diagonal().add_(diagonal_shift(hessian, damping, devices.cubic))
    failed_at = cholesky_(damped)
    if failed_at or not torch.isfinite(damped.diagonal()).all():
        raise NotPositiveDefiniteError(failure_reason(hessian, damping, failed_at))
    return damped.to(devices.kept)


def cholesky_(matrix: Float64[Tensor, "n n"]) -> int:
    """Overwrite a symmetric matrix A with the upper triangular R, RᵀR = A; return 0.

    If A is not positive definite, return the number of the first pivot that is not positive,
    counted from 1.
    """
    lower = matrix.T
    failed_at = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed_at))
    return int(failed_at)


def failure_reason(
    hessian: Float[Tensor, "columns columns"], damping: float, failed_at: int
) -> str:
    """Return the error message that says why a Hessian has no factor."""
    if not torch.isfinite(hessian).all():
        return "the Hessian holds NaN or infinite entries: the inputs it was made of did too"
    dead = int((hessian.diagonal() <= 0).sum())
    return (
        f"the Hessian of {len(hessian)} columns has no Cholesky factor with damping {damping:g} "
        f"(pivot {failed_at} is not positive, {dead} columns never saw an input): "
        "use more damping or more calibration tokens"
    )

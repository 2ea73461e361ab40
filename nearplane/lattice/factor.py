"""The Cholesky factor of a Hessian: the basis in which nearest plane walks."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from nearplane.lattice.damping import damp
from nearplane.types import NearplaneError


class NotPositiveDefiniteError(NearplaneError):
    """The damped Hessian has no Cholesky factor; the message names the likely cause."""


def factor(
    hessian: Tensor, order: Int64[Tensor, " columns"], damping: float
) -> Float64[Tensor, "columns columns"]:
    """Return the upper triangular R with RᵀR = the damped Hessian on columns order.flip(0).

    The order's first entry is R's last column, where nearest plane starts. One float64 Cholesky,
    no inverse.

    Raises NotPositiveDefiniteError when the damped Hessian has no factor.

    Cost: columns³ / 3 multiply-adds.
    """
    columns = order.flip(0)
    damped = damp(hessian, damping)[columns][:, columns]
    lower, failed_at = torch.linalg.cholesky_ex(damped)
    if failed_at.item() or not torch.isfinite(lower.diagonal()).all():
        raise NotPositiveDefiniteError(why_not(hessian, damping, int(failed_at)))
    return lower.T.contiguous()


def why_not(hessian: Float[Tensor, "columns columns"], damping: float, failed_at: int) -> str:
    """Return the sentence that says why a Hessian has no factor."""
    if not torch.isfinite(hessian).all():
        return "the Hessian holds NaN or infinite entries: the inputs it was made of did too"
    dead = int((hessian.diagonal() <= 0).sum())
    return (
        f"the Hessian of {len(hessian)} columns has no Cholesky factor with damping {damping:g} "
        f"(pivot {failed_at} is not positive, {dead} columns never saw an input): "
        "use more damping or more calibration tokens"
    )

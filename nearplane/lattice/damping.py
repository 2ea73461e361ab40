"""Damping: the small multiple of the identity that makes a Hessian a basis."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

STRIPE = 128  # rows


def damp(
    hessian: Float[Tensor, "columns columns"], damping: float
) -> Float[Tensor, "columns columns"]:
    """Return hessian + damping · mean(diag(hessian)) · I in float64, symmetrised.

    In lattice terms √λ·I is appended below the inputs; λ → ∞ turns nearest plane into
    round-to-nearest.

    - `damping`: a fraction; 0.01 adds 1 % of the mean diagonal.
    """
    damped = symmetric(hessian)
    damped.diagonal().add_(added(hessian, damping))
    return damped


def symmetric(hessian: Float[Tensor, "columns columns"]) -> Float64[Tensor, "columns columns"]:
    """Return (hessian + hessianᵀ) / 2 in float64."""
    n = len(hessian)
    whole = torch.empty(n, n, dtype=torch.float64, device=hessian.device)
    # a product of types is made in memory of its own: of some rows at a time
    for first in range(0, n, STRIPE):
        some = slice(first, first + STRIPE)
        torch.add(hessian[some].double(), hessian[:, some].T.double(), out=whole[some])
    return whole.div_(2)


def added(hessian: Float[Tensor, "columns columns"], damping: float) -> Float64[Tensor, ""]:
    """Return what damping adds to the diagonal."""
    return damping * hessian.diagonal().double().mean()

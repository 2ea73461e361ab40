"""Damping: the small multiple of the identity that makes a Hessian positive definite."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from nearplane.lattice.float64 import float64_devices

BLOCK_ROWS = 128  # rows that are widened to float64 at a time


def damp(
    hessian: Float[Tensor, "columns columns"], damping: float
) -> Float[Tensor, "columns columns"]:
    """Return hessian + damping · mean(diag(hessian)) · I in float64, symmetrised.

    This is the Hessian of the inputs with √λ·I appended as further tokens. With λ → ∞ nearest
    plane becomes round-to-nearest. The result lies where cubic work is done (`float64_devices`).

    - `damping`: a fraction; 0.01 adds 1 % of the mean diagonal.
    """
    damped = symmetric(hessian.to(float64_devices(hessian.device).cubic))
    damped.diagonal().add_(diagonal_shift(hessian, damping, damped.device))
    return damped


def symmetric(hessian: Float[Tensor, "columns columns"]) -> Float64[Tensor, "columns columns"]:
    """Return (hessian + hessianᵀ) / 2 in float64."""
    n = len(hessian)
    total = torch.empty(n, n, dtype=torch.float64, device=hessian.device)
    # the float64 copies are temporary: making a few rows at a time keeps them small
    for first in range(0, n, BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        torch.add(hessian[rows].double(), hessian[:, rows].T.double(), out=total[rows])
    return total.div_(2)


def diagonal_shift(
    hessian: Float[Tensor, "columns columns"], damping: float, device: torch.device
) -> Float64[Tensor, ""]:
    """Return the number that damping adds to every diagonal entry, computed on a device."""
    return damping * hessian.diagonal().to(device).double().mean()

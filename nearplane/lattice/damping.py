"""Damping: the small multiple of the identity that makes a Hessian a basis."""

import torch
from jaxtyping import Float
from torch import Tensor


def damp(
    hessian: Float[Tensor, "columns columns"], damping: float
) -> Float[Tensor, "columns columns"]:
    """Return hessian + damping · mean(diag(hessian)) · I in float64, symmetrised.

    In lattice terms √λ·I is appended below the inputs; λ → ∞ turns nearest plane into
    round-to-nearest.

    - `damping`: a fraction; 0.01 adds 1 % of the mean diagonal.
    """
    damped = hessian.to(torch.float64, copy=True).add_(hessian.T).div_(2)
    damped.diagonal().add_(damping * damped.diagonal().mean())
    return damped

"""GPTQ as its paper writes it, for tests that compare nearest plane with it."""

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from nearplane.lattice.damping import damp
from nearplane.lattice.nearest_plane import nearest_integer


def gptq(
    weight: Float[Tensor, "rows columns"],
    hessian: Float[Tensor, "columns columns"],
    step: Float[Tensor, "#rows #columns"],
    order: Int64[Tensor, " columns"],
    damping: float,
    low: int | None = None,
    high: int | None = None,
) -> Int32[Tensor, "rows columns"]:
    """Return the codes of GPTQ on the original columns [Frantar23, Alg. 1; Chen26, Alg. 1].

    With P = order, L = the unit lower LDL factor of (Pᵀ H P)⁻¹ and columns j first to last:

        ζ = W_j / S_j,  Z_j = round(ζ),  ε = Z_j S_j − W_j,  W_j.. += L_j.. ε

    It is slow and uses an inverse on purpose, so that it shares no code with `nearest_plane` except
    `nearest_integer`.
    """
    permuted = damp(hessian, damping)[order][:, order]
    lower = torch.linalg.cholesky(torch.linalg.inv(permuted))
    unit = (lower / lower.diagonal()).to(weight.dtype)
    compensated = weight[:, order].clone()  # weights after the updates by earlier errors
    step = step.expand_as(weight)[:, order]
    code = torch.empty_like(compensated, dtype=torch.int32)
    for j in range(compensated.shape[1]):
        nearest = nearest_integer(compensated[:, j] / step[:, j], low, high)
        code[:, j] = nearest.to(torch.int32)
        error = nearest * step[:, j] - compensated[:, j]
        compensated[:, j:] += error[:, None] * unit[j:, j]
    return code[:, order.argsort()]

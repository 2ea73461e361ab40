"""GPTQ as the paper writes it: the oracle that nearest plane is compared with."""

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

    Slow and with an inverse on purpose: it shares nothing with `nearest_plane` but the rounding.
    """
    permuted = damp(hessian, damping)[order][:, order]
    lower = torch.linalg.cholesky(torch.linalg.inv(permuted))
    unit = (lower / lower.diagonal()).to(weight.dtype)
    work = weight[:, order].clone()
    step = step.expand_as(weight)[:, order]
    code = torch.empty_like(work, dtype=torch.int32)
    for j in range(work.shape[1]):
        nearest = nearest_integer(work[:, j] / step[:, j], low, high)
        code[:, j] = nearest.to(torch.int32)
        error = nearest * step[:, j] - work[:, j]
        work[:, j:] += error[:, None] * unit[j:, j]
    return code[:, order.argsort()]

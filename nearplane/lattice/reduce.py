"""LLL reduction of a layer's lattice through fpylll: a study, not a part of any method.

Finding: LLL finds next to nothing that an order of the columns has not found. Measured by

    python bench/lll.py --hessians FILE --columns 32 64 128 256 --rows 512 \\
        --orders activation min-pivot

with one step for all rows at 3.00 bits of entropy, Gaussian weights, on the first K columns of 8
Hessians of SmolLM2-135M (q, o, gate, down of blocks 2 and 20; 8192 tokens of WikiText-2), damping
0.01 and 1e-4. "Net" is entropy gained + ½ log₂ of the loss ratio: bits per weight at equal loss.

| starting order | loss, LLL / plain | entropy | largest code | net |
|---|---|---|---|---|
| activation | 0.953 .. 1.004 | 3.00 -> 3.00 | 8 -> 8 (worst 32 -> 39) | +0.004 .. −0.031 |
| min-pivot | 0.998 .. 1.002 | 3.00 -> 3.00 | the same | +0.003 .. −0.002 |

The median net is −0.001 and 0.000. Synthetic Hessians (no --hessians): the same at damping 0.01
(activation 0 .. −0.045, min-pivot 0 .. −0.014). Only a spectrum of 1e6 under a damping of 1e-4
gains, and less the more columns there are: min-pivot −0.435, −0.247, −0.002 bits at K = 32, 64,
128, where loss falls to 0.46, 0.58, 0.99 of plain and entropy rises from 3.00 to 3.13, 3.15, 3.00.
LLL keeps det R, so it can gain at most ½ log₂(AM/GM) of the pivots; steps of const / R_jj take
more of that (+0.01 .. −2.6 bits on the real ones) without a transform. So no method uses it.
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from nearplane.lattice.nearest_plane import nearest_plane
from nearplane.types import NearplaneError

GRID_BITS = 40  # of the largest basis entry, when the basis is rounded to integers for fpylll


def lll(
    factor: Float[Tensor, "n n"], step: Float[Tensor, "1 n"], delta: float = 0.99
) -> Int64[Tensor, "n n"]:
    """Return a unimodular T such that the columns of R · diag(s) · T are LLL-reduced [Lenstra82].

    Reduced means, with R̂ = the triangular factor of R · diag(s) · T, for every k < j,

        |R̂_kj| ≤ 0.51 R̂_kk   and   R̂_jj² + R̂_j-1,j² ≥ δ R̂_j-1,j-1²

    (0.51 is fpylll's allowance for floating point).

    fpylll works on integers, so the basis is rounded to multiples of its largest entry / 2^40. T is
    exactly unimodular whatever was rounded; the two conditions hold to about 2^-40 of the largest
    entry.

    - `step`: one row's, or what all rows share; T depends on it.

    Raises NearplaneError without fpylll, or when an entry of T leaves 64 bits.

    Cost: at worst about n⁴ log(largest entry); 0.01, 0.01, 0.04, 0.4 s at n = 32, 64, 128, 256 on
    one core, growing to days at the widths of real layers.
    """
    integer_matrix, reduction = _fpylll()
    basis = factor.double() * step.double()
    grid = 2.0**GRID_BITS / basis.abs().max()
    # fpylll's basis vectors are rows
    rows = integer_matrix.from_matrix((basis.T * grid).round().long().tolist())
    transform = integer_matrix.identity(len(factor))
    reduction(rows, transform, delta=delta)
    try:
        return torch.tensor([list(row) for row in transform]).T.contiguous()
    except (OverflowError, RuntimeError) as error:
        raise NearplaneError("the reduced basis has coefficients beyond 64 bits") from error


def _fpylll():
    """Return fpylll's matrix type and its reduction."""
    try:
        from fpylll import LLL, IntegerMatrix
    except ImportError as error:
        raise NearplaneError(
            "lattice reduction needs fpylll: pip install nearplane[reduce]"
        ) from error
    return IntegerMatrix, LLL.reduction


def reduced_factor(
    factor: Float[Tensor, "n n"], step: Float[Tensor, "1 n"], transform: Int64[Tensor, "n n"]
) -> tuple[Float64[Tensor, "n n"], Float64[Tensor, "n n"]]:
    """Return Q and the upper triangular R̂, its diagonal positive: Q R̂ = R · diag(s) · T."""
    q, r = torch.linalg.qr(factor.double() * step.double() @ transform.double())
    sign = r.diagonal().sign()
    return q * sign, r * sign[:, None]


def nearest_plane_reduced(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "1 n"],
    transform: Int64[Tensor, "n n"],
) -> Int64[Tensor, "rows n"]:
    """Return nearest plane's codes found on the basis R · diag(s) · T, in the original basis.

    With Q R̂ of that basis: t = R̂⁻¹ Qᵀ R w, ẑ = nearest plane of t on R̂ with step 1, z = T ẑ.
    value = step · z as ever, and the loss is at most ¼ Σ R̂_jj² [Babai86].
    """
    q, reduced = reduced_factor(factor, step, transform)
    seen = target.double() @ factor.double().T @ q
    coordinates = torch.linalg.solve_triangular(reduced, seen.T, upper=True).T
    code = nearest_plane(coordinates.contiguous(), reduced, torch.ones_like(reduced[:1]))
    return code.long() @ transform.T

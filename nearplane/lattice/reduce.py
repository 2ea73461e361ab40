"""LLL reduction of a layer's lattice through fpylll: a study, not a part of any method.

Finding: LLL finds next to nothing that an order of the columns has not found. Measured by

    python bench/lll.py --hessians FILE --columns 32 64 128 256 --rows 512 \\
        --orders activation min-pivot

with one step for all rows, Gaussian weights, plain nearest plane at 3.00 bits of entropy, the first
K columns of 8 Hessians of a trained model of SmolLM2-135M's shape (q, o, gate, down of blocks 2 and
20; 8192 tokens of WikiText-2) and damping 0.01 and 1e-4: 64 cases an order. Loss, entropy and codes
are at the same step; "net" is ½ log₂ of the loss ratio after LLL's step was changed to give equal
entropy: bits per weight, negative where LLL saves some.

| starting order | loss, LLL / plain | entropy | largest code | net, median | net, range |
|---|---|---|---|---|---|
| activation | 0.953 .. 1.004 | 3.00 -> 3.00 | 8 -> 8 (worst 32 -> 39) | −0.001 | −0.032 .. 0.003 |
| min-pivot | 0.998 .. 1.002 | 3.00 -> 3.00 | unchanged | 0.000 | −0.002 .. 0.004 |

On synthetic Hessians (no --hessians) at damping 0.01: −0.046 .. 0.001 and −0.013 .. 0.001. More
only where a spectrum of 1e6 meets a damping of 1e-4 and few columns: from min-pivot −0.362, −0.156,
−0.001 bits at K = 32, 64, 128; there, at the same step, loss falls to 0.46, 0.58, 0.99 of plain and
entropy rises from 3.00 to 3.13, 3.15, 3.00.

Why: T keeps det R, and min-pivot already puts the small pivots where LLL's swaps would; the spread
of pivots that is left (½ log₂(AM/GM), 0.004 .. 2.5 bits on the real ones) belongs to the lattice.
Unequal steps take some of it (median −0.03, to −2.6 bits) without a transform. No method uses LLL.
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

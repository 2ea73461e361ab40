"""LLL lattice reduction through fpylll: an experiment that no method uses.

Result: after the columns are put in a good order, LLL saves almost no bits. It was measured by

    python bench/lll.py --hessians FILE --columns 32 64 128 256 --rows 512 \\
        --orders activation min-pivot

with one step for all rows, Gaussian weights, nearest plane at 3.00 bits of entropy, the first K
columns of 8 Hessians of a trained model of SmolLM2-135M's shape (q, o, gate, down of blocks 2 and
20; 8192 tokens of WikiText-2), and damping 0.01 and 1e-4: 64 cases for each order. Loss, entropy
and codes are at the same step. "net" is ½ log₂ of the loss ratio after LLL's step was changed to
give equal entropy, in bits per weight; it is negative where LLL saves bits.

| starting order | loss, LLL / plain | entropy | largest code | net, median | net, range |
|---|---|---|---|---|---|
| activation | 0.953 .. 1.004 | 3.00 -> 3.00 | 8 -> 8 (worst 32 -> 39) | −0.001 | −0.032 .. 0.003 |
| min-pivot | 0.998 .. 1.002 | 3.00 -> 3.00 | unchanged | 0.000 | −0.002 .. 0.004 |

On synthetic Hessians (no --hessians) at damping 0.01 the range of "net" is −0.046 .. 0.001 for
activation and −0.013 .. 0.001 for min-pivot. LLL saves more only where the condition number is 1e6,
damping 1e-4 and columns are few: from min-pivot −0.362, −0.156, −0.001 bits at K = 32, 64, 128.
There, at the same step, loss falls to 0.46, 0.58, 0.99 of nearest plane's and entropy rises from
3.00 to 3.13, 3.15, 3.00.

The reason: the transform T keeps det R, and min-pivot already puts the small pivots where the swaps
of LLL would. The remaining spread of the pivots (½ log₂(AM/GM), 0.004 .. 2.5 bits on the real
Hessians) is a property of the lattice. Unequal steps gain from it (median −0.03, at most −2.6 bits)
without a transform.
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from nearplane.lattice.nearest_plane import nearest_plane
from nearplane.types import NearplaneError

GRID_BITS = 40  # bits of the largest basis entry after rounding to integers for fpylll


def lll(
    factor: Float[Tensor, "n n"], step: Float[Tensor, "1 n"], delta: float = 0.99
) -> Int64[Tensor, "n n"]:
    """Return a unimodular T such that the columns of R · diag(s) · T are LLL-reduced [Lenstra82].

    Reduced means, with R̂ = the triangular factor of R · diag(s) · T, for every k < j,

        |R̂_kj| ≤ 0.51 R̂_kk   and   R̂_jj² + R̂_j-1,j² ≥ δ R̂_j-1,j-1²

    (the exact bound is 0.50; fpylll allows 0.51 for floating-point errors).

    fpylll works on integers, so the basis is rounded to multiples of its largest entry / 2^40. T is
    exactly unimodular in spite of this; the two conditions hold up to about 2^-40 of the largest
    entry.

    - `step`: of one row, or common to all rows; T depends on it.

    Raises NearplaneError when fpylll is not installed or an entry of T does not fit 64 bits.

    Cost: at worst about n⁴ log(largest entry). One core took 0.01, 0.01, 0.04, 0.4 s at n = 32, 64,
    128, 256; at the widths of real layers it would take days.
    """
    integer_matrix, reduction = _fpylll()
    basis = factor.double() * step.double()
    grid = 2.0**GRID_BITS / basis.abs().max()
    # fpylll's basis vectors are rows
    rows = integer_matrix.from_matrix((basis.T * grid).round().long().tolist())
    transform = integer_matrix.identity(len(factor))
    reduction(rows, transform, delta=delta)
    try:
        rows_of = [list(row) for row in transform]
        return torch.tensor(rows_of, device=factor.device).T.contiguous()
    except (OverflowError, RuntimeError) as error:
        raise NearplaneError("the reduced basis has coefficients beyond 64 bits") from error


def _fpylll():
    """Return fpylll's matrix type and its LLL function."""
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
    """Round on the reduced basis R · diag(s) · T; return the codes in the original basis.

    With Q R̂ the QR factorization of the reduced basis: t = R̂⁻¹ Qᵀ R w, ẑ = nearest plane of t on
    R̂ with step 1, and z = T ẑ. The value is step · z, and the loss is at most ¼ Σ R̂_jj² [Babai86].
    """
    q, reduced = reduced_factor(factor, step, transform)
    rotated = target.double() @ factor.double().T @ q
    coordinates = torch.linalg.solve_triangular(reduced, rotated.T, upper=True).T
    code = nearest_plane(coordinates.contiguous(), reduced, torch.ones_like(reduced[:1]))
    return code.long() @ transform.T

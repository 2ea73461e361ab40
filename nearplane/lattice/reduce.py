"""LLL reduction of a layer's lattice through fpylll: a study, not a part of any method."""

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

        |R̂_kj| ≤ R̂_kk / 2   and   R̂_jj² + R̂_j-1,j² ≥ δ R̂_j-1,j-1².

    fpylll works on integers, so the basis is rounded to multiples of its largest entry / 2^40. T is
    exactly unimodular whatever was rounded; the two conditions hold to about 2^-40 of the largest
    entry.

    - `step`: one row's, or what all rows share; T depends on it.

    Raises NearplaneError without fpylll, or when an entry of T leaves 64 bits.

    Cost: about n⁴ operations in the worst case; 0.01 s at n = 32, 0.3 s at n = 128.
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

    **What it is good for: nothing in this package** (FINDING_PLACEHOLDER)
    """
    q, reduced = reduced_factor(factor, step, transform)
    seen = target.double() @ factor.double().T @ q
    coordinates = torch.linalg.solve_triangular(reduced, seen.T, upper=True).T
    code = nearest_plane(coordinates.contiguous(), reduced, torch.ones_like(reduced[:1]))
    return code.long() @ transform.T

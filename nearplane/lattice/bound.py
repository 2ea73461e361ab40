"""The bound and the expected value of nearest plane's loss, both known before rounding."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from nearplane.lattice.float64 import widened


def squared_sides(
    factor: Float[Tensor, "n n"], step: Float[Tensor, "#rows #n"]
) -> Float64[Tensor, "#rows n"]:
    """Return R_jj² s_j²: the squared sides of the box that nearest plane's residual lies in.

    The residual of a row is R · error, whose squared length is the damped loss.
    """
    return widened(factor.diagonal()).square() * widened(step).square()


def bound(
    factor: Float[Tensor, "n n"], step: Float[Tensor, "#rows #n"]
) -> Float64[Tensor, "#rows"]:
    """Return ¼ Σ_j R_jj² s_j², an upper bound of each row's loss [Chen26, Thm. 5].

    It holds for unclipped codes and for losses under the damped Hessian RᵀR, because a residual
    lies in the box with sides R_jj s_j. Steps are in the order of the factor's columns.
    """
    return squared_sides(factor, step).sum(1) / 4


def expected_loss(
    factor: Float[Tensor, "n n"], step: Float[Tensor, "#rows #n"]
) -> Float64[Tensor, "#rows"]:
    """Return (1/12) Σ_j R_jj² s_j²: the mean loss of residuals uniform in the box.

    This is one third of `bound` [Chen26, App. D.2].
    """
    return squared_sides(factor, step).sum(1) / 12


def relative_factor(
    factor: Float[Tensor, "n n"], step: Float[Tensor, "#rows #n"]
) -> Float64[Tensor, "#rows"]:
    """Return γ with ‖residual of nearest plane‖ ≤ γ · ‖residual of the closest lattice point‖.

    Losses are squared norms, so they compare by γ² [Chen26, Thm. 5]:

        γ = √(1 + max_j Σ_{k≤j} d_k² / d_j²) with d_j = R_jj s_j
    """
    sides = squared_sides(factor, step)
    return (1 + (sides.cumsum(1) / sides).amax(1)).sqrt()


def am_gm_bits(factor: Float[Tensor, "n n"]) -> float:
    """Return ½ log₂(mean R_jj² / geometric mean R_jj²): bits per weight that unequal steps save.

    It is zero when all pivots are equal [Lifar26].
    """
    return am_gm_bits_of(factor.diagonal())


def am_gm_bits_of(pivots: Float[Tensor, " n"]) -> float:
    """Return `am_gm_bits` of a factor with these pivots."""
    squares = widened(pivots).square()
    return float((torch.log2(squares.mean()) - torch.log2(squares).mean()) / 2)

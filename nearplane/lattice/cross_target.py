"""The matrix to round a layer towards when the layers in front of it are quantized already.

Those layers give it inputs X̂ that differ from the original model's X. Ridge regression on the
calibration tokens finds the weight w* whose output X̂w* is closest to the original output Xw. The
layer is then rounded towards w + α (w* − w); α and the ridge are chosen on held-out tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from nearplane.lattice.damping import damp
from nearplane.lattice.factor import cholesky_
from nearplane.lattice.float64 import widened
from nearplane.rows import RowsOf, by_rows

RIDGES = (0.01, 0.1, 1.0)  # fractions of the Hessian's mean diagonal


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's inputs x̂ in the quantized model and x in the original one.

    They are means over tokens, or sums; only the unit of `RidgeChoice.reduction` depends on it.

    - `hessian`: x̂ x̂ᵀ.
    - `cross`: x̂ xᵀ.
    - `lag`: (h − ĥ) x̂ᵀ, where the output is added to hidden states that are ĥ in the quantized
      model and h in the original one; None where this difference is not to be corrected.
    """

    hessian: Float[Tensor, "n n"]
    cross: Float[Tensor, "n n"]
    lag: Float[Tensor, "rows n"] | None = None

    def factor(self, ridge: float, dtype: torch.dtype) -> Float[Tensor, "n n"] | None:
        """Return the lower Cholesky factor of X̂ᵀX̂ + λI, made in float64; None if there is none."""
        damped = damp(self.hessian, ridge)
        return None if cholesky_(damped) else damped.T.to(dtype).to(self.hessian.device)

    def descent(self, weight: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
        """Return (Xw + H − X̂w − Ĥ)ᵀX̂: half the negative gradient of the mismatch at `weight`."""
        descent = matmul_by_rows(weight, (self.cross - self.hessian).T.to(weight.dtype))
        return descent if self.lag is None else descent + self.lag.to(weight.dtype)


@dataclass(frozen=True)
class RidgeChoice:
    """The ridge and the strength chosen for one weight.

    - `ridge`: λ as a fraction of the Hessian's mean diagonal.
    - `strength`: α in 0 .. 1, the fraction of w* − w that is added to the weight.
    - `reduction`: by how much the mismatch on held-out tokens fell, in the units of a loss (times
      the number of tokens where the moments are sums).
    """

    ridge: float
    strength: float
    reduction: float


def ridge_correction(
    descent: Float[Tensor, "rows n"], factor: Float[Tensor, "n n"]
) -> Float[Tensor, "rows n"]:
    """Return w* − w, w* the minimiser of ‖X̂w* + Ĥ − Xw − H‖² + λ‖w* − w‖² [Arai25, Zhang25].

        w* − w = (X̂ᵀX̂ + λI)⁻¹ X̂ᵀ(Xw + H − X̂w − Ĥ),   λ = ridge · mean diag(X̂ᵀX̂)

    H and Ĥ are the hidden states that the output is added to, or zero. With λ → ∞ w* is w.

    - `descent`: from `Moments.descent`.
    - `factor`: from `Moments.factor`.
    """
    return by_rows(lambda rows: (torch.cholesky_solve(descent[rows].T, factor).T,), len(descent))[0]


def matmul_by_rows(
    left: Float[Tensor, "rows n"], right: Float[Tensor, "n m"]
) -> Float[Tensor, "rows m"]:
    """Return left @ right, a few rows at a time."""
    return by_rows(lambda rows: (left[rows] @ right,), len(left))[0]


def row_dot_products(left: Float[Tensor, "rows n"], right: RowsOf) -> Float64[Tensor, " rows"]:
    """Return the inner product of every row of `left` with that of `right`, in float64."""
    return by_rows(lambda rows: (widened(left[rows] * right(rows)).sum(1),), len(left))[0]


def held_out_strength(
    correction: Float[Tensor, "rows n"], descent: Float[Tensor, "rows n"], held_out: Moments
) -> tuple[float, float]:
    """Return the strength α in 0 .. 1 that is best on held-out tokens, and the reduction by it.

    The mismatch of w + αδ is a parabola in α: its slope at 0 is −2⟨δ, descent⟩, its curvature
    δ X̂ᵀX̂ δᵀ. The reduction is the mismatch at α = 0 minus that at the strength returned, in the
    units of the moments.

    - `descent`: held_out.descent(weight).
    """
    hessian = held_out.hessian.to(correction.dtype)
    half_slope = float(row_dot_products(correction, descent.__getitem__).sum())
    curvature = float(row_dot_products(correction, lambda rows: correction[rows] @ hessian).sum())
    if half_slope <= 0 or curvature <= 0:
        return 0.0, 0.0
    strength = min(1.0, half_slope / curvature)
    return strength, strength * (2 * half_slope - strength * curvature)


def choose_ridges(
    weights: Sequence[Float[Tensor, "_ n"]],
    fitted: Moments,
    held_out: Moments,
    ridges: Sequence[float] = RIDGES,
) -> list[RidgeChoice]:
    """Return for each weight the ridge and strength of least mismatch on held-out tokens.

    Corrections are fitted on one part of the calibration tokens and judged on the other. A
    correction that helps only the tokens it was fitted on, because a few activations are huge or
    the tokens are few, therefore gets strength 0.

    Cost: for every ridge n³ / 3 multiply-adds in float64, and rows · n² in the weights' type.
    """
    descents = [(fitted.descent(weight), held_out.descent(weight)) for weight in weights]
    best = [RidgeChoice(ridges[0], 0.0, 0.0)] * len(weights)
    for ridge in ridges:
        choices = choices_with_ridge(ridge, descents, fitted, held_out)
        best = [
            old if old.reduction >= new.reduction else new
            for old, new in zip(best, choices, strict=True)
        ]
    return best


def choices_with_ridge(
    ridge: float,
    descents: Sequence[tuple[Tensor, Tensor]],
    fitted: Moments,
    held_out: Moments,
) -> list[RidgeChoice]:
    """Return for each weight the best strength when all use the same ridge.

    - `descents`: `Moments.descent` of each weight, on the fitted and on the held-out tokens.
    """
    factor = fitted.factor(ridge, descents[0][0].dtype)
    if factor is None:
        return [RidgeChoice(ridge, 0.0, 0.0)] * len(descents)
    corrections = ((ridge_correction(fit, factor), judge) for fit, judge in descents)
    return [
        RidgeChoice(ridge, *held_out_strength(correction, judge, held_out))
        for correction, judge in corrections
    ]


def ridge_targets(
    weights: Sequence[Float[Tensor, "_ n"]], moments: Moments, choices: Sequence[RidgeChoice]
) -> list[Tensor]:
    """Return w + α (w* − w) for each weight; with strength 0, the same tensor that was given.

    - `moments`: over all calibration tokens, the held-out ones included.
    """
    targets = list(weights)
    for ridge in {choice.ridge for choice in choices if choice.strength}:
        factor = moments.factor(ridge, weights[0].dtype)
        if factor is None:
            continue
        for index, choice in enumerate(choices):
            if choice.strength and choice.ridge == ridge:
                descent = moments.descent(weights[index])
                targets[index] = weights[index] + choice.strength * ridge_correction(
                    descent, factor
                )
    return targets

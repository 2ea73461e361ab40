"""The cross-layer target: what a weight should become when its inputs have drifted."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from nearplane.lattice.damping import damp

RIDGES = (0.01, 0.1, 1.0)  # fractions of the Hessian's mean diagonal


@dataclass(frozen=True)
class Moments:
    """Second moments of one layer's inputs: drifted x̂ x̂ᵀ, and drifted with original x̂ xᵀ.

    `x̂` comes from the layers that are quantized already, `x` from the original ones. Where the
    output is added to hidden states that have drifted too, `lag` is (h − ĥ) x̂ᵀ.
    """

    hessian: Float[Tensor, "n n"]
    cross: Float[Tensor, "n n"]
    lag: Float[Tensor, "rows n"] | None = None
    factors: dict[float, Tensor] = field(default_factory=dict, repr=False)

    def factor(self, ridge: float) -> Float64[Tensor, "n n"]:
        """Return the lower Cholesky factor of X̂ᵀX̂ + λI, made once for layers that share it."""
        if ridge not in self.factors:
            self.factors[ridge] = torch.linalg.cholesky(damp(self.hessian, ridge))
        return self.factors[ridge]

    def wish(self, weight: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
        """Return (Xw + H − X̂w − Ĥ)ᵀX̂: half the negative gradient of the mismatch at `weight`."""
        wish = weight @ (self.cross - self.hessian).T.to(weight.dtype)
        return wish if self.lag is None else wish + self.lag.to(weight.dtype)


@dataclass(frozen=True)
class Drift:
    """How far a weight is moved towards its ridge target, and by which ridge.

    - `removed`: by how much the mismatch fell on tokens held out, in the units of a loss.
    """

    ridge: float
    strength: float
    removed: float


def ridge_move(
    weight: Float[Tensor, "rows n"], moments: Moments, ridge: float
) -> Float[Tensor, "rows n"]:
    """Return w* − w, w* the minimiser of ‖X̂w* + Ĥ − Xw − H‖² + λ‖w* − w‖² [Arai25, Zhang25].

        w* − w = (X̂ᵀX̂ + λI)⁻¹ X̂ᵀ(Xw + H − X̂w − Ĥ),   λ = ridge · mean diag(X̂ᵀX̂)

    H and Ĥ are hidden states that the output is added to, or nothing. With λ → ∞ the weight stays.

    Cost: n³ / 3 multiply-adds in float64 and rows · n² in the weight's type.
    """
    return solved(moments.wish(weight), moments, ridge)


def solved(
    wish: Float[Tensor, "rows n"], moments: Moments, ridge: float
) -> Float[Tensor, "rows n"]:
    """Return wish (X̂ᵀX̂ + λI)⁻¹."""
    return torch.cholesky_solve(wish.T, moments.factor(ridge).to(wish.dtype)).T


def held_out_strength(
    move: Float[Tensor, "rows n"], wish: Float[Tensor, "rows n"], held: Moments
) -> tuple[float, float]:
    """Return the strength α in 0 .. 1 that is best on held-out tokens, and what it removes.

    The mismatch of w + αδ is a parabola in α: its slope at 0 is −2⟨δ, wish⟩, its curvature
    δ X̂ᵀX̂ δᵀ. The second result is the fall from α = 0, in the units of a loss.

    - `wish`: what the weight lacks on the held-out tokens, held.wish(weight).
    """
    toward = float((move * wish).sum(dtype=torch.float64))
    curvature = float((move @ held.hessian.to(move.dtype) * move).sum(dtype=torch.float64))
    if toward <= 0 or curvature <= 0:
        return 0.0, 0.0
    strength = min(1.0, toward / curvature)
    return strength, strength * (2 * toward - strength * curvature)


def choose_drift(
    weight: Float[Tensor, "rows n"], fitted: Moments, held: Moments, ridges: tuple = RIDGES
) -> Drift:
    """Return the ridge and strength that remove most of the mismatch on tokens held out.

    Moves are fitted on one part of the calibration and judged on another: where activations are
    massive or tokens few, a move that would only fit its own tokens gets strength 0.
    """
    wish, judge = fitted.wish(weight), held.wish(weight)
    best = Drift(ridges[0], 0.0, 0.0)
    for ridge in ridges:
        strength, removed = held_out_strength(solved(wish, fitted, ridge), judge, held)
        if removed > best.removed:
            best = Drift(ridge, strength, removed)
    return best


def moved(
    weight: Float[Tensor, "rows n"], moments: Moments, drift: Drift
) -> Float[Tensor, "rows n"]:
    """Return w + α (w* − w) on all the calibration's tokens."""
    if drift.strength == 0:
        return weight
    return weight + drift.strength * ridge_move(weight, moments, drift.ridge)

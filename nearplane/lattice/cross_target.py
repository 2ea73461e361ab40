"""The cross-layer target: what a weight should become when its inputs have drifted."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from nearplane.lattice.damping import damp
from nearplane.lattice.factor import cholesky_
from nearplane.rows import RowsOf, by_rows

RIDGES = (0.01, 0.1, 1.0)  # fractions of the Hessian's mean diagonal


@dataclass(frozen=True)
class Moments:
    """Second moments of one layer's inputs: drifted x̂ x̂ᵀ, and drifted with original x̂ xᵀ.

    Means over tokens, or sums: what is fitted to them, and how far it is trusted, is the same.

    `x̂` comes from the layers that are quantized already, `x` from the original ones. Where the
    output is added to hidden states that have drifted too, `lag` is (h − ĥ) x̂ᵀ.
    """

    hessian: Float[Tensor, "n n"]
    cross: Float[Tensor, "n n"]
    lag: Float[Tensor, "rows n"] | None = None

    def factor(self, ridge: float, dtype: torch.dtype) -> Float[Tensor, "n n"] | None:
        """Return the lower Cholesky factor of X̂ᵀX̂ + λI, made in float64; None if there is none."""
        damped = damp(self.hessian, ridge)
        return None if cholesky_(damped) else damped.T.to(dtype)

    def wish(self, weight: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
        """Return (Xw + H − X̂w − Ĥ)ᵀX̂: half the negative gradient of the mismatch at `weight`."""
        wish = times(weight, (self.cross - self.hessian).T.to(weight.dtype))
        return wish if self.lag is None else wish + self.lag.to(weight.dtype)


@dataclass(frozen=True)
class Drift:
    """How far a weight is moved towards its ridge target, and by which ridge.

    - `removed`: by how much the mismatch fell on tokens held out, in the units of a loss; times
      their number where moments are sums.
    """

    ridge: float
    strength: float
    removed: float


def ridge_move(
    wish: Float[Tensor, "rows n"], factor: Float[Tensor, "n n"]
) -> Float[Tensor, "rows n"]:
    """Return w* − w, w* the minimiser of ‖X̂w* + Ĥ − Xw − H‖² + λ‖w* − w‖² [Arai25, Zhang25].

        w* − w = (X̂ᵀX̂ + λI)⁻¹ X̂ᵀ(Xw + H − X̂w − Ĥ),   λ = ridge · mean diag(X̂ᵀX̂)

    H and Ĥ are hidden states that the output is added to, or nothing. With λ → ∞ the weight stays.

    - `wish`, `factor`: of the weight's moments.
    """
    return by_rows(lambda rows: (torch.cholesky_solve(wish[rows].T, factor).T,), len(wish))[0]


def times(left: Float[Tensor, "rows n"], right: Float[Tensor, "n m"]) -> Float[Tensor, "rows m"]:
    """Return left @ right, by rows."""
    return by_rows(lambda rows: (left[rows] @ right,), len(left))[0]


def products(left: Float[Tensor, "rows n"], right: RowsOf) -> Float64[Tensor, " rows"]:
    """Return the inner products of rows with what `right` gives for them, in float64."""
    return by_rows(
        lambda rows: ((left[rows] * right(rows)).sum(1, dtype=torch.float64),), len(left)
    )[0]


def held_out_strength(
    move: Float[Tensor, "rows n"], wish: Float[Tensor, "rows n"], held: Moments
) -> tuple[float, float]:
    """Return the strength α in 0 .. 1 that is best on held-out tokens, and what it removes.

    The mismatch of w + αδ is a parabola in α: its slope at 0 is −2⟨δ, wish⟩, its curvature
    δ X̂ᵀX̂ δᵀ. The second result is the fall from α = 0, in the units of the moments.

    - `wish`: what the weight lacks on the held-out tokens, held.wish(weight).
    """
    hessian = held.hessian.to(move.dtype)
    toward = float(products(move, wish.__getitem__).sum())
    curvature = float(products(move, lambda rows: move[rows] @ hessian).sum())
    if toward <= 0 or curvature <= 0:
        return 0.0, 0.0
    strength = min(1.0, toward / curvature)
    return strength, strength * (2 * toward - strength * curvature)


def choose_drifts(
    weights: Sequence[Float[Tensor, "_ n"]],
    fitted: Moments,
    held: Moments,
    ridges: Sequence[float] = RIDGES,
) -> list[Drift]:
    """Return for each weight the ridge and strength that remove most of its mismatch, held out.

    Moves are fitted on one part of the calibration and judged on another: where activations are
    massive or tokens few, a move that would only fit its own tokens gets strength 0.

    Cost: for every ridge n³ / 3 multiply-adds in float64, and rows · n² in the weights' type.
    """
    wishes = [(fitted.wish(weight), held.wish(weight)) for weight in weights]
    best = [Drift(ridges[0], 0.0, 0.0)] * len(weights)
    for ridge in ridges:
        tried = drifts_by(ridge, wishes, fitted, held)
        best = [b if b.removed >= t.removed else t for b, t in zip(best, tried, strict=True)]
    return best


def drifts_by(
    ridge: float, wishes: Sequence[tuple[Tensor, Tensor]], fitted: Moments, held: Moments
) -> list[Drift]:
    """Return for each weight the best strength of the move by one ridge.

    - `wishes`: what each weight lacks on the fitted and on the held-out tokens.
    """
    factor = fitted.factor(ridge, wishes[0][0].dtype)
    if factor is None:
        return [Drift(ridge, 0.0, 0.0)] * len(wishes)
    moves = ((ridge_move(wish, factor), judge) for wish, judge in wishes)
    return [Drift(ridge, *held_out_strength(move, judge, held)) for move, judge in moves]


def moved(
    weights: Sequence[Float[Tensor, "_ n"]], moments: Moments, drifts: Sequence[Drift]
) -> list[Tensor]:
    """Return w + α (w* − w) on all the calibration's tokens; a weight that stays is itself."""
    found = list(weights)
    for ridge in {drift.ridge for drift in drifts if drift.strength}:
        factor = moments.factor(ridge, weights[0].dtype)
        for index, drift in enumerate(drifts if factor is not None else ()):
            if drift.strength and drift.ridge == ridge:
                wish = moments.wish(weights[index])
                found[index] = weights[index] + drift.strength * ridge_move(wish, factor)
    return found

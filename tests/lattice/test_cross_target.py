"""The cross-layer target: it minimises what it says, and held-out tokens limit it."""

import pytest
import torch

from nearplane.lattice.cross_target import (
    Moments,
    RidgeChoice,
    choose_ridges,
    held_out_strength,
    ridge_correction,
    ridge_targets,
)


def streams(seed: int, tokens: int, n: int = 24, rows: int = 7, drift: float = 0.3):
    """Return weight, drifted inputs, original inputs and the lag of the hidden states."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(n, n, generator=torch.Generator().manual_seed(1)).double() / n**0.5
    x = torch.randn(tokens, n, generator=random).double() @ mix
    # a drift that the inputs predict in part, and noise
    turned = x @ (torch.eye(n) + drift * mix).double()
    drifted = turned + drift * torch.randn(tokens, n, generator=random).double()
    weight = torch.randn(rows, n, generator=random).double()
    lag = drift * x @ torch.randn(n, rows, generator=torch.Generator().manual_seed(2)).double()
    return weight, drifted, x, lag


def correction_of(weight, of: Moments, ridge: float):
    return ridge_correction(of.descent(weight), of.factor(ridge, weight.dtype))


def choose_ridge(weight, fitted: Moments, held: Moments) -> RidgeChoice:
    return choose_ridges([weight], fitted, held)[0]


def moments(drifted, x, lag=None) -> Moments:
    count = len(x)
    lagging = None if lag is None else lag.T @ drifted / count
    return Moments(drifted.T @ drifted / count, drifted.T @ x / count, lagging)


def mismatch(weight, original, drifted, x, lag=None):
    """Return ‖X̂w + Ĥ − Xw₀ − H‖² / tokens."""
    gap = drifted @ weight.T - x @ original.T
    return ((gap if lag is None else gap - lag).square().sum() / len(x)).item()


@pytest.mark.parametrize("with_lag", [False, True])
def test_the_ridge_correction_is_where_the_gradient_vanishes(with_lag):
    """By least squares on the tokens themselves, with √λ rows below; to float64's 1e-9."""
    weight, drifted, x, lag = streams(3, 200)
    lag = lag if with_lag else None
    ridge = 0.1
    correction = correction_of(weight, moments(drifted, x, lag), ridge)
    added = ridge * (drifted.square().sum(0).mean() / 200) * 200
    stacked = torch.cat([drifted, added.sqrt() * torch.eye(24).double()])
    gap = x @ weight.T - drifted @ weight.T + (0 if lag is None else lag)
    padded = torch.cat([gap, torch.zeros(24, 7).double()])
    assert torch.allclose(correction, torch.linalg.lstsq(stacked, padded).solution.T, atol=1e-9)


def test_no_drift_no_correction():
    weight, _, x, _ = streams(4, 200)
    same = moments(x, x)
    assert correction_of(weight, same, 0.01).abs().max() < 1e-12
    assert choose_ridge(weight, same, same).strength == 0
    assert ridge_targets([weight], same, [RidgeChoice(0.01, 0.0, 0.0)])[0] is weight


def test_the_strength_is_the_best_on_the_held_out_tokens():
    weight, drifted, x, lag = streams(5, 60)
    _, held_drifted, held_x, held_lag = streams(6, 300)
    correction = correction_of(weight, moments(drifted, x, lag), 0.01)
    held = moments(held_drifted, held_x, held_lag)
    strength, reduction = held_out_strength(correction, held.descent(weight), held)

    def left(alpha):
        return mismatch(weight + alpha * correction, weight, held_drifted, held_x, held_lag)

    assert 0 < strength < 1
    assert left(strength) == pytest.approx(left(0) - reduction, rel=1e-9)
    assert left(strength) < min(left(strength - 0.01), left(strength + 0.01))


def test_few_tokens_are_trusted_less():
    """A move fitted on fewer tokens than columns gets less strength, or a stronger ridge."""
    _, held_drifted, held_x, _ = streams(8, 2000)
    held = moments(held_drifted, held_x)
    chosen = []
    for tokens in (12, 2000):
        weight, drifted, x, _ = streams(7, tokens)
        chosen.append(choose_ridge(weight, moments(drifted, x), held))
    few, many = chosen
    assert few.strength < many.strength or few.ridge > many.ridge
    assert few.reduction < many.reduction


def test_a_massive_token_does_not_move_the_weight():
    """One token a thousand times as loud fits itself; held-out tokens refuse the move."""
    weight, drifted, x, _ = streams(9, 40)
    drifted, x = drifted.clone(), x.clone()
    x[0] *= 1000
    drifted[0] *= 700
    _, held_drifted, held_x, _ = streams(10, 400, drift=0.0)
    held = moments(held_drifted, held_x)
    choice = choose_ridge(weight, moments(drifted, x), held)
    (target,) = ridge_targets([weight], moments(drifted, x), [choice])
    before = mismatch(weight, weight, held_drifted, held_x)
    after = mismatch(target, weight, held_drifted, held_x)
    assert choice.strength == 0 and after == before


def test_weights_that_share_inputs_are_moved_as_each_alone():
    """Bit by bit: what is shared is the factors only."""
    weight, drifted, x, lag = streams(11, 300)
    _, held_drifted, held_x, held_lag = streams(12, 300)
    fitted, held = moments(drifted, x), moments(held_drifted, held_x)
    weights = [weight, weight[:3] * 5, torch.zeros(2, 24).double()]
    choices = choose_ridges(weights, fitted, held)
    assert choices == [choose_ridge(each, fitted, held) for each in weights]
    assert choices[0].strength > 0 and choices[2].strength == 0
    targets = ridge_targets(weights, fitted, choices)
    for each, choice, target in zip(weights, choices, targets, strict=True):
        assert torch.equal(target, ridge_targets([each], fitted, [choice])[0])


def test_moments_without_a_factor_move_nothing():
    """Inputs that are all zero, or overflowed: the walk finds out when it makes the basis."""
    weight = torch.ones(2, 3)
    for bad in (torch.zeros(3, 3), torch.full((3, 3), torch.inf)):
        moments = Moments(bad, bad)
        (choice,) = choose_ridges([weight], moments, moments)
        assert choice.strength == 0
        assert ridge_targets([weight], moments, [RidgeChoice(0.1, 0.5, 1.0)])[0] is weight

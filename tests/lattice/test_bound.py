"""Laws of the error: METHOD 14, numbers 5 and 6, the relative bound against exhaustive search."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane import lattice
from nearplane.lattice import ORDERS, nearest_plane
from nearplane.lattice.basis import damped_hessian
from tests.lattice import plain
from tests.problem import KINDS, problem, steps

EPS = torch.finfo(torch.float64).eps
laws = settings(max_examples=25, deadline=None, derandomize=True)


def rounded(p, step, basis):
    """Return the values on the original columns and the step on the factor's."""
    wide = step.expand(-1, len(basis.columns))[:, basis.columns]
    code = nearest_plane(p.weight[:, basis.columns], basis.factor, wide)
    return (code * wide)[:, basis.columns.argsort()], wide


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("tokens", [None, 40])
def test_residual_identity(order, tokens):
    """Law 5: Σ Y² = (q − w) H (q − w)ᵀ; both sums of n² terms err by at most 4 n eps Σ|terms|."""
    p = problem(1, 800, 129, tokens=tokens, dead=3)
    basis = lattice.basis(p.hessian, order, 0.01)
    value, _ = rounded(p, steps(1, 800, 129, "element"), basis)
    error = p.weight - value
    residual = error[:, basis.columns] @ basis.factor.T
    undamped, damped = basis.losses(error)
    exact = damped_hessian(basis)
    size = ((error.abs() @ exact.abs()) * error.abs()).sum(1)
    limit = 4 * 129 * EPS * size
    assert ((residual.square().sum(1) - damped).abs() <= limit).all()
    assert ((plain_loss(p.weight, value, exact) - damped).abs() <= limit).all()
    assert ((plain_loss(p.weight, value, p.hessian) - undamped).abs() <= limit).all()


def plain_loss(weight, value, hessian):
    return torch.from_numpy(plain.loss(weight.numpy(), value.numpy(), hessian.numpy()))


@laws
@given(
    st.integers(0, 10**6),
    st.integers(1, 130),
    st.sampled_from(KINDS),
    st.sampled_from(ORDERS),
    st.sampled_from([1e-8, 1e-4, 0.01, 1.0]),
    st.floats(1e-3, 10),
)
def test_bound_holds_for_every_row(seed, n, kind, order, damping, size):
    """Law 6 [Chen26, Thm. 5]. Each residual is at most half a box side, plus n eps of the sums."""
    p = problem(seed, 30, n, tokens=n + 2, dead=n // 20)
    step, basis = steps(seed, 30, n, kind, size), lattice.basis(p.hessian, order, damping)
    value, wide = rounded(p, step, basis)
    undamped, damped = basis.losses(p.weight - value)
    bound = lattice.bound(basis.factor, wide)
    assert (damped <= bound * (1 + 1e-9)).all()
    assert (undamped <= damped * (1 + 1e-12)).all()
    assert torch.allclose(bound / 3, lattice.expected_loss(basis.factor, wide), rtol=1e-14)


def test_bound_written_out():
    factor = torch.tensor([[2.0, 7.0], [0.0, 3.0]], dtype=torch.float64)
    step = torch.tensor([[1.0, 1.0], [2.0, -4.0]], dtype=torch.float64)
    assert lattice.squared_sides(factor, step).tolist() == [[4, 9], [16, 144]]
    assert lattice.bound(factor, step).tolist() == [13 / 4, 40]
    assert lattice.expected_loss(factor, step).tolist() == [13 / 12, 160 / 12]
    # first row: max(1, 13/9), second: max(1, 160/144)
    gamma = [math.sqrt(1 + 13 / 9), math.sqrt(1 + 160 / 144)]
    assert np.allclose(lattice.relative_factor(factor, step), gamma, rtol=1e-15)
    assert math.isclose(lattice.am_gm_bits(factor), math.log2(6.5 / 6) / 2)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_corner_reaches_the_bound(order, kind):
    """Law 6: R w = ½ (1 − δ) sign·d·s rounds to zero and errs by (1 − δ)² of the bound."""
    p, delta = problem(2, 300, 129), 1e-7
    basis = lattice.basis(p.hessian, order, 0.01)
    wide = steps(2, 300, 129, kind).expand(300, 129)
    sign = torch.randn(300, 129, generator=torch.Generator().manual_seed(3)).sign().double()
    corner = sign * (1 - delta) / 2 * basis.factor.diagonal() * wide
    weight = torch.linalg.solve_triangular(basis.factor, corner.T, upper=True).T
    code = nearest_plane(weight, basis.factor, wide)
    assert not code.any()
    loss = (weight @ basis.factor.T).square().sum(1)
    ratio = loss / lattice.bound(basis.factor, wide)
    # solving and multiplying back err by about n eps times the factor's condition, near 1e-11
    assert (ratio - (1 - delta) ** 2).abs().max() < 1e-9
    # a hair beyond the corner and the point is no longer zero
    beyond = weight * (1 + 3 * delta)
    assert nearest_plane(beyond, basis.factor, wide).any(1).all()


@pytest.mark.parametrize("seed", range(8))
def test_mean_ratio_is_a_third(seed):
    """Law 6: mean(error / bound) of 64 rows is in [0.28, 0.39] (METHOD: 0.337, sd 0.013)."""
    p = problem(seed, 64, 96)
    basis = lattice.basis(p.hessian, ORDERS[seed % 3], 0.01)
    value, wide = rounded(p, steps(seed, 64, 96, KINDS[seed % 5], 0.2), basis)
    _, damped = basis.losses(p.weight - value)
    ratio = (damped / lattice.bound(basis.factor, wide)).mean()
    assert 0.28 <= ratio <= 0.39


def test_expected_loss_is_the_mean():
    """Residuals uniform in the box: d² u² has variance d⁴ / 180; five standard errors."""
    p = problem(3, 4000, 64, condition=100)
    basis = lattice.basis(p.hessian, "activation", 0.01)
    value, wide = rounded(p, steps(3, 4000, 64, "column", 0.05), basis)
    _, damped = basis.losses(p.weight - value)
    sides = lattice.squared_sides(basis.factor, wide)
    error = (sides.square().sum() / 180 / 4000).sqrt()
    expected = lattice.expected_loss(basis.factor, wide)
    assert expected.shape == (1,)
    assert (damped.mean() - expected).abs() <= 5 * error


def around(p, step, hessian, found):
    """Return for every row the integers that a better point could have in each coordinate.

    loss(z) ≤ ℓ implies |s_k z_k − w_k| ≤ √(ℓ [H⁻¹]_kk).
    """
    reach = (found[:, None] * torch.linalg.inv(hessian).diagonal()).sqrt()
    centre, half = p.weight / step, reach / step.abs()
    first, last = (centre - half).ceil().int(), (centre + half).floor().int()
    return [
        [range(a, b + 1) for a, b in zip(*row, strict=True)]
        for row in zip(first.tolist(), last.tolist(), strict=True)
    ]


@pytest.mark.parametrize("n", [3, 4])
@pytest.mark.parametrize("kind", ["scalar", "element"])
@pytest.mark.parametrize("order", ORDERS)
def test_relative_factor_against_the_true_closest_vector(n, kind, order):
    """Law 6, relative: optimum ≤ ‖error‖ ≤ γ · optimum, over all of ℤⁿ that matters."""
    worst = 1.0
    for seed in range(6):
        p = problem(seed, 20, n, condition=100)
        basis = lattice.basis(p.hessian, order, 0.01)
        step = steps(seed, 20, n, kind).expand(20, n)
        value, wide = rounded(p, step, basis)
        hessian = damped_hessian(basis)
        found = plain_loss(p.weight, value, hessian)
        gamma = lattice.relative_factor(basis.factor, wide)
        # 1e-9: the point found itself must be among the candidates
        for row, candidates in enumerate(around(p, step, hessian, found * (1 + 1e-9))):
            best = plain.best_of_all(
                p.weight[row].numpy(), step[row].numpy(), hessian.numpy(), candidates
            )
            assert best <= found[row] * (1 + 1e-12)
            assert found[row].sqrt() <= gamma[row] * math.sqrt(best) * (1 + 1e-12)
            worst = max(worst, float(found[row] / best))
    # nearest plane is not the optimum everywhere, or the test shows nothing
    assert worst > 1.01


@pytest.mark.parametrize("order", ORDERS)
def test_two_bits_against_exhaustive_search(order):
    """Clipped to 2 bits in 4 columns there are 256 candidates: none is beaten by nearest plane."""
    p = problem(4, 100, 4, condition=100)
    basis = lattice.basis(p.hessian, order, 0.01)
    step = steps(4, 100, 4, "row", 1.0).expand(100, 4)
    target = p.weight[:, basis.columns]
    code = nearest_plane(target, basis.factor, step, -2, 1)[:, basis.columns.argsort()]
    hessian = damped_hessian(basis)
    found = plain_loss(p.weight, code * step, hessian)
    optimal = 0
    for row in range(100):
        best = plain.best_of_all(
            p.weight[row].numpy(), step[row].numpy(), hessian.numpy(), [range(-2, 2)] * 4
        )
        assert best <= found[row] * (1 + 1e-12)
        optimal += bool(found[row] <= best * (1 + 1e-12))
    # both numbers speak of the same points: some are optimal, some are not
    assert 20 < optimal < 100


def test_am_gm_bits():
    """Zero for equal pivots, the same for a scaled Hessian, else positive."""
    p = problem(5, 1, 64)
    factor = lattice.basis(p.hessian, "activation", 0.01).factor
    bits = lattice.am_gm_bits(factor)
    assert bits > 0.01
    assert math.isclose(lattice.am_gm_bits(3 * factor), bits, rel_tol=1e-12)
    assert abs(lattice.am_gm_bits(torch.eye(64).double() * 7)) < 1e-12

"""Damping, the factor and what happens when there is none (PITFALLS 1 and 20)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane import lattice
from nearplane.lattice import ORDERS, NotPositiveDefiniteError, basis, damp, factor
from nearplane.lattice.basis import RETRIES, damped_hessian
from nearplane.types import NearplaneError
from tests.problem import problem

EPS = torch.finfo(torch.float64).eps


def test_damp():
    hessian = torch.tensor([[1.0, 2.0], [4.0, 3.0]])
    damped = damp(hessian, 0.5)
    assert damped.dtype == torch.float64
    assert damped.tolist() == [[2, 3], [3, 4]]
    assert hessian.tolist() == [[1, 2], [4, 3]]
    double = hessian.double()
    assert damp(double, 0.5) is not double and double.tolist() == [[1, 2], [4, 3]]
    assert torch.equal(damp(hessian, 0.0), (double + double.T) / 2)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 100), st.sampled_from([1e-6, 0.01, 1.0]))
def test_factor_multiplies_back(seed, n, damping):
    """RᵀR = the damped Hessian on columns order.flip(0), within n eps of |R|ᵀ|R|."""
    p = problem(seed, 1, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    found = factor(p.hessian, order, damping)
    assert torch.equal(found, found.triu()) and (found.diagonal() > 0).all()
    columns = order.flip(0)
    expected = damp(p.hessian, damping)[columns][:, columns]
    limit = (n + 2) * EPS * (found.abs().T @ found.abs())
    assert ((found.T @ found - expected).abs() <= limit).all()


def test_first_of_the_order_is_the_factors_last_column():
    p = problem(1, 1, 20)
    order = lattice.order(p.hessian, "activation")
    found = factor(p.hessian, order, 0.0)
    # the column that is rounded last meets no other: its pivot is its own diagonal entry
    last = order[-1]
    assert torch.isclose(found[0, 0] ** 2, p.hessian[last, last])
    assert torch.isclose(found[:, -1].square().sum(), p.hessian[order[0], order[0]])


@pytest.mark.parametrize("name", ORDERS)
def test_basis(name):
    p = problem(2, 1, 100)
    of = basis(p.hessian, name, 0.02)
    assert of.damping == 0.02
    assert torch.equal(of.columns, lattice.order(p.hessian, name, 0.02).flip(0))
    assert torch.equal(of.factor, factor(p.hessian, of.columns.flip(0), 0.02))
    assert torch.equal(of.pivots[of.columns], of.factor.diagonal())
    assert torch.equal(damped_hessian(of), damp(p.hessian, 0.02))
    assert of.hessian is p.hessian


@pytest.mark.parametrize("name", ORDERS)
def test_damping_grows_when_it_must(name):
    """Rank 40 of 129: 1e-17 of the mean diagonal vanishes in rounding errors of about 1e-16."""
    p = problem(0, 1, 129, tokens=40, dead=7)
    of = basis(p.hessian, name, 1e-17)
    grown = round(torch.log10(torch.tensor(of.damping / 1e-17)).item())
    assert 1 <= grown <= RETRIES
    assert of.damping == 1e-17 * 10**grown
    with pytest.raises(NotPositiveDefiniteError):
        basis(p.hessian, name, of.damping / 10 / 10**RETRIES)


@pytest.mark.parametrize("name", ORDERS)
def test_damping_stays_where_it_suffices(name):
    p = problem(0, 1, 129, tokens=40, dead=7)
    assert basis(p.hessian, name, 1e-6).damping == 1e-6


def test_the_message_says_what_is_wrong():
    p = problem(0, 1, 129, tokens=40, dead=7)
    with pytest.raises(NotPositiveDefiniteError) as caught:
        factor(p.hessian, torch.arange(129), 0.0)
    message = str(caught.value)
    assert "129 columns" in message and "damping 0 " in message
    assert "7 columns never saw an input" in message
    assert "more damping or more calibration tokens" in message
    assert "\n" not in message
    assert isinstance(caught.value, NearplaneError)


@pytest.mark.parametrize("name", ORDERS)
def test_a_hessian_of_zeros_has_no_basis(name):
    with pytest.raises(NotPositiveDefiniteError, match="9 columns never saw an input"):
        basis(torch.zeros(9, 9), name, 0.01)


@pytest.mark.parametrize("name", ORDERS)
def test_an_indefinite_hessian_has_no_basis(name):
    hessian = torch.eye(70).double()
    hessian[0, 1] = hessian[1, 0] = -300
    with pytest.raises(NotPositiveDefiniteError, match="no Cholesky factor with damping 100"):
        basis(hessian, name, 0.01)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("place", [(0, 0), (3, 90)])
def test_non_finite_hessians_are_refused_at_once(bad, name, place):
    p = problem(3, 1, 100)
    p.hessian[place] = bad
    with pytest.raises(NotPositiveDefiniteError, match="NaN or infinite"):
        basis(p.hessian, name, 0.01)


def test_float32_hessians_are_factored_in_float64():
    p = problem(4, 1, 60)
    single = p.hessian.float()
    order = torch.arange(60)
    assert factor(single, order, 0.01).dtype == torch.float64
    assert torch.equal(factor(single, order, 0.01), factor(single.double(), order, 0.01))

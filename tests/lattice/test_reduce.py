"""LLL: a unimodular transform, a reduced basis, integers that are a point of the same lattice."""

import sys

import pytest
import torch

from nearplane import lattice
from nearplane.lattice import nearest_plane
from nearplane.lattice.reduce import lll, nearest_plane_reduced, reduced_factor
from nearplane.types import NearplaneError
from tests.lattice.test_bound import around, plain_loss
from tests.problem import problem, steps

fpylll_missing = True
try:
    import fpylll  # noqa: F401

    fpylll_missing = False
except ImportError:
    pass
needs_fpylll = pytest.mark.skipif(fpylll_missing, reason="fpylll (nearplane[reduce]) is absent")


def setting(n, *, condition=1e6, order="natural", kind="column", rows=200):
    p = problem(n, rows, n, condition=condition)
    basis = lattice.basis(p.hessian, order, 1e-4)
    step = steps(n, rows, n, kind).expand(-1, n)[:1]
    return p.weight[:, basis.columns], basis, step


@needs_fpylll
@pytest.mark.parametrize("n", [1, 2, 17, 64, 100])
@pytest.mark.parametrize("kind", ["scalar", "column"])
def test_transform_is_unimodular_and_the_basis_reduced(n, kind):
    _, basis, step = setting(n, kind=kind)
    transform = lll(basis.factor, step)
    assert transform.dtype == torch.int64
    assert abs(abs(float(torch.linalg.det(transform.double()))) - 1) < 1e-6
    _, r = reduced_factor(basis.factor, step, transform)
    pivot = r.diagonal()
    assert (pivot > 0).all() and torch.equal(r, r.triu())
    # size reduced, with fpylll's 0.51, and Lovász's condition with δ = 0.99; 1e-4 for the grid
    assert ((r / pivot[:, None]).triu(1).abs() <= 0.51 + 1e-4).all()
    swapped = pivot[1:].square() + r.diagonal(1).square()
    assert (swapped >= (0.99 - 1e-4) * pivot[:-1].square()).all()
    # the same lattice has the same volume
    volume = (basis.factor.diagonal() * step[0]).abs().log().sum()
    assert torch.isclose(pivot.log().sum(), volume, rtol=1e-9)


@needs_fpylll
@pytest.mark.parametrize("order", lattice.ORDERS)
def test_codes_are_a_point_of_the_lattice_within_its_bound(order):
    """z = T ẑ: the loss of step · z is the reduced basis's residual, at most ¼ Σ R̂_jj²."""
    target, basis, step = setting(64, order=order)
    transform = lll(basis.factor, step)
    code = nearest_plane_reduced(target, basis.factor, step, transform)
    assert code.shape == target.shape and code.dtype == torch.int64
    loss = ((target - code * step) @ basis.factor.T).square().sum(1)
    _, r = reduced_factor(basis.factor, step, transform)
    assert (loss <= r.diagonal().square().sum() / 4 * (1 + 1e-9)).all()
    ratio = loss.mean() / (r.diagonal().square().sum() / 4)
    assert 0.28 <= ratio <= 0.39


@needs_fpylll
def test_error_falls_on_average():
    """From the natural order of a steep spectrum, by far; from a good order it may not."""
    target, basis, step = setting(64, kind="scalar")
    plain = nearest_plane(target, basis.factor, step)
    reduced = nearest_plane_reduced(target, basis.factor, step, lll(basis.factor, step))
    losses = [((target - c * step) @ basis.factor.T).square().sum() for c in (plain, reduced)]
    assert losses[1] < 0.5 * losses[0]


@needs_fpylll
def test_the_identity_transform_is_nearest_plane():
    target, basis, step = setting(40)
    same = nearest_plane_reduced(target, basis.factor, step, torch.eye(40, dtype=torch.int64))
    assert torch.equal(same, nearest_plane(target, basis.factor, step).long())


@needs_fpylll
def test_a_reduced_basis_is_left_alone():
    factor = torch.diag(torch.tensor([1.0, 2.0, 3.0])).double()
    assert torch.equal(lll(factor, torch.ones(1, 3).double()), torch.eye(3, dtype=torch.int64))


@needs_fpylll
def test_never_better_than_the_closest_vector():
    target, basis, step = setting(4, condition=100, rows=30)
    code = nearest_plane_reduced(target, basis.factor, step, lll(basis.factor, step))
    hessian = basis.factor.T @ basis.factor
    found = plain_loss(target, code * step, hessian)

    class Rotated:
        weight = target

    from tests.lattice import plain

    steps_of = step.expand_as(target)
    for row, candidates in enumerate(around(Rotated, steps_of, hessian, found * (1 + 1e-9))):
        best = plain.best_of_all(
            target[row].numpy(), steps_of[row].numpy(), hessian.numpy(), candidates
        )
        assert best <= found[row] * (1 + 1e-12)


def test_a_missing_fpylll_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fpylll", None)
    with pytest.raises(NearplaneError, match=r"pip install nearplane\[reduce\]"):
        lll(torch.eye(3).double(), torch.ones(1, 3).double())

"""What voids a bound and what does not."""

import torch

from nearplane import lattice
from nearplane.lattice import nearest_plane
from nearplane.methods import GPTQ, HPTQ
from nearplane.methods.certificate import certify_rows, measure, residuals
from tests.problem import problem


def setting(rows=40, n=64):
    p = problem(1, rows, n)
    basis = lattice.basis(p.hessian, "activation", 0.01)
    step = torch.full((1, 1), 0.3).double()
    code = nearest_plane(p.weight[:, basis.columns], basis.factor, step)
    return p, basis, step, code


def losses_of(p, basis, step, code):
    value = (code * step)[:, basis.columns.argsort()]
    sides = basis.factor.diagonal()[None] * step
    return measure(p.weight, value.__getitem__, basis, lambda _: sides)


def test_unclipped_rows_are_certified():
    p, basis, step, code = setting()
    bound, void = certify_rows(losses_of(p, basis, step, code))
    assert void == "" and bound.shape == (40,)
    assert torch.allclose(bound, lattice.bound(basis.factor, step).expand(40))


def test_a_moved_code_voids_its_row_alone():
    p, basis, step, code = setting()
    code[3, 10] += 2
    losses = losses_of(p, basis, step, code)
    assert (~losses.inside).nonzero().flatten().tolist() == [3]
    bound, void = certify_rows(losses)
    assert bound.isnan().nonzero().flatten().tolist() == [3]
    assert "1 of 40 rows" in void


def test_all_rows_void():
    p, basis, step, code = setting()
    losses = losses_of(p, basis, step, code + 5)
    bound, void = certify_rows(losses)
    assert bound is None and "40 of 40 rows" in void


def test_residual_is_in_units_of_the_factor():
    p, basis, step, code = setting()
    losses = losses_of(p, basis, step, code)
    error = p.weight - (code * step)[:, basis.columns.argsort()]
    residual = residuals(error, basis)
    assert torch.allclose(residual.square().sum(1), losses.damped)
    assert (residual.abs() <= basis.factor.diagonal() * 0.15 * (1 + 1e-9)).all()
    assert (losses.loss <= losses.damped).all()


def test_without_a_box_no_row_is_inside():
    p, basis, step, code = setting()
    value = (code * step)[:, basis.columns.argsort()]
    boxed, losses = losses_of(p, basis, step, code), measure(p.weight, value.__getitem__, basis)
    assert not losses.inside.any() and losses.bound.isinf().all()
    assert torch.equal(losses.loss, boxed.loss) and torch.equal(losses.damped, boxed.damped)


def test_gptq_knows_which_rows_it_clipped():
    """8 bits clip nothing at their least-error steps, 2 bits nearly every row."""
    p = problem(2, 64, 128, dtype=torch.float32)
    assert GPTQ(bits=2, group_size=128)(p.weight, p.hessian).void != ""
    w = GPTQ(bits=8, group_size=128)(p.weight, p.hessian)
    limits = (w.code == -128) | (w.code == 127)
    free = ~limits.any(1)
    if free.any():
        assert w.bound is not None and not w.bound[free].isnan().any()


def test_hptq_against_hrtn(record_property):
    """A report, not a law: on correlated inputs the lattice wins at the same bytes."""
    from nearplane.methods import HRTN

    p = problem(3, 128, 256, dtype=torch.float32)
    lattice_loss, nearest_loss = (
        float(m(bpw=3.0)(p.weight, p.hessian).loss.sum()) for m in (HPTQ, HRTN)
    )
    record_property("HPTQ / HRTN loss at 3 bits", lattice_loss / nearest_loss)

"""ECLQ: its rate, its certificate with a target, and that each part lowers the loss."""

import dataclasses

import pytest
import torch

from nearplane import codes, lattice
from nearplane.methods import ECLQ, HPTQ, Target
from nearplane.methods.eclq import rounding_problem
from nearplane.methods.meet_rate import TOLERANCE
from tests.problem import problem

PARTS = {"slope": 0.0, "unequal": False, "contexts": False}


def rate(w) -> float:
    return 8 * (len(w.record) + codes.ENTRY_BYTES) / w.code.numel()


@pytest.mark.parametrize("bpw", [1.6, 2.125, 3.125, 4.1])
@pytest.mark.parametrize("seed", range(3))
def test_the_rate_is_met_from_below(bpw, seed):
    """Within 0.01 bit, as a user may count on, of 98,304 weights."""
    p = problem(seed, 256, 384, condition=100, dtype=torch.float32)
    w = ECLQ(bpw)(p.weight, p.hessian)
    assert bpw - 0.01 < rate(w) <= bpw


@pytest.mark.parametrize("paths", [1, 4])
@pytest.mark.parametrize("bpw", [1.6, 3.0])
def test_every_row_keeps_its_bound(bpw, paths):
    p = problem(3, 96, 128, dtype=torch.float32)
    w = ECLQ(bpw, paths=paths)(p.weight, p.hessian)
    assert not w.void and (w.damped_loss <= w.bound).all()
    # a residual uniform in a box is at a third of it; cells are narrower than the widest
    assert 0.05 < float((w.damped_loss / w.bound).mean()) < 0.4


def test_under_an_aim_the_bound_is_of_the_weight():
    """√loss ≤ √(loss to the target) + √(loss of the target): the triangle of certificates."""
    p = problem(4, 96, 128, dtype=torch.float32)
    basis = lattice.basis(p.hessian, "activation", 0.01)
    aside = 0.05 * torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    w = ECLQ(3.0).quantize_towards(p.weight, basis, Target(p.weight + aside, {"strength": 0.5}))
    damped = lattice.damp(p.hessian, basis.damping)
    error = (p.weight - w.value()).double()
    assert torch.allclose(w.damped_loss, ((error @ damped) * error).sum(1), rtol=1e-9)
    assert (w.damped_loss <= w.bound).all() and not w.void
    assert w.facts["strength"] == 0.5
    own = ((aside.double() @ damped) * aside.double()).sum()
    # the target is the float32 sum of weight and aside
    assert w.facts["aside"] == pytest.approx(float(own), rel=1e-5)
    # rounded towards the target: nearer to it than to the weight
    to_target = (p.weight + aside - w.value()).double()
    assert ((to_target @ damped) * to_target).sum() < w.damped_loss.sum()


def test_an_aim_at_the_weight_is_no_aim():
    p = problem(5, 64, 96, dtype=torch.float32)
    basis = lattice.basis(p.hessian, "activation", 0.01)
    with_aim = ECLQ(3.5).quantize_towards(p.weight, basis, Target(p.weight))
    assert torch.equal(with_aim.record, ECLQ(3.5)(p.weight, basis).record)


@pytest.mark.parametrize("bpw", [2.125, 3.125])
def test_it_beats_hptq_at_the_same_rate(bpw):
    """By 0.05 bits at least (7 % of loss), on Gaussian weights with one spread for all rows."""
    p = problem(6, 384, 384, condition=300, dtype=torch.float32)
    flagship, plain = (m(bpw)(p.weight, p.hessian).loss.sum() for m in (ECLQ, HPTQ))
    assert flagship < 0.93 * plain


@pytest.mark.parametrize("part", PARTS)
def test_every_part_earns_its_place(part):
    """On weights whose rows differ in size, as real ones do; each part off costs loss."""
    p = problem(7, 384, 256, condition=1000, dtype=torch.float32)
    size = torch.exp2(torch.randn(384, 1, generator=torch.Generator().manual_seed(3)) / 2)
    whole = ECLQ(2.125)
    without = dataclasses.replace(whole, **{part: PARTS[part]})
    losses = [m(size * p.weight, p.hessian).loss.sum() for m in (whole, without)]
    # rates differ by TOLERANCE or a little more, which moves a loss by about 1 %
    assert losses[0] < (1 - 4 * TOLERANCE) * losses[1]


def test_more_paths_lower_the_loss():
    p = problem(8, 128, 192, condition=300, dtype=torch.float32)
    losses = [ECLQ(2.5, paths=paths)(p.weight, p.hessian).loss.sum() for paths in (1, 8)]
    assert losses[1] < 0.98 * losses[0]


def test_sides_are_about_equal():
    """Steps stand on a ladder whose rungs are at most a factor of 1.13 from what is asked for."""
    p = problem(9, 8, 64)
    basis = lattice.basis(p.hessian, "activation", 0.01)
    sides = rounding_problem(p.weight, basis, True).unit_step[0] * basis.factor.diagonal()
    assert sides.max() / sides.min() <= 1.13**2


def test_drawn_errors_have_the_power_of_real_ones():
    """Within a factor 1.5 of ECLQ without a rate term, whose residuals are uniform in the box."""
    p = problem(10, 256, 128, condition=100, dtype=torch.float32)
    method = ECLQ(3.0, slope=0.0)
    basis = method.basis(p.hessian)
    drawn = method.drawn_error(p.weight, basis, 3.0, torch.Generator().manual_seed(0)).double()
    damped = lattice.damp(p.hessian, basis.damping)
    power = ((drawn @ damped) * drawn).sum()
    assert 1 / 1.5 < float(power / method(p.weight, basis).damped_loss.sum()) < 1.5

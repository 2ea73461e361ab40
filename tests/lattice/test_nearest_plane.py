"""Laws of rounding: METHOD 14, numbers 1 to 4, 7, 9, 10, 13.

Float64 integers are compared exactly. Data are continuous and random, so a real number within
rounding error (about 1e-12) of a tie has a probability of about 1e-7 in 1e5 codes.
"""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane import lattice
from nearplane.lattice import ORDERS, nearest_plane, nearest_plane_plain
from tests.lattice import plain
from tests.problem import KINDS, Problem, problem, rotation, steps

DAMPING = 0.01
LIMITS = (None, (-3, 2), (-2, None), (None, 1))
laws = settings(max_examples=25, deadline=None, derandomize=True)


def order_of(p: Problem, name: str) -> torch.Tensor:
    """Return an order by name; "random" is one too."""
    if name == "random":
        return torch.randperm(len(p.hessian), generator=torch.Generator().manual_seed(5))
    return lattice.order(p.hessian, name, DAMPING)


def round_on(function, p: Problem, step, order, limits=None, damping=DAMPING):
    """Return `function`'s codes on the original columns."""
    columns, back = order.flip(0), order.flip(0).argsort()
    factor = lattice.factor(p.hessian, order, damping).to(p.weight.dtype)
    wide = step.expand(-1, len(order))[:, columns] if step.shape[1] > 1 else step
    return function(p.weight[:, columns], factor, wide, *(limits or (None, None)))[:, back]


def bounds(limits):
    """Return what numpy's clip takes."""
    if limits is None:
        return None
    return tuple(x if x is not None else s for x, s in zip(limits, (-np.inf, np.inf), strict=True))


def share_outside(code, limits):
    low, high = bounds(limits)
    return ((code < low) | (code > high)).double().mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [*ORDERS, "random"])
def test_five_implementations_agree(order, kind):
    """Laws 1 and 2, on 100,620 codes a case: two oracles of tests/lattice/plain.py included."""
    seed = KINDS.index(kind)
    p = problem(seed, 780, 129, dead=seed)
    step, columns = steps(seed, 780, 129, kind), order_of(p, order)
    basis = plain.damped_inputs(p.inputs.numpy(), DAMPING)
    listed = columns.numpy()
    damped = basis.T @ basis
    for limits in (None, LIMITS[1 + seed % 3]):
        fast = round_on(nearest_plane, p, step, columns, limits)
        simple = round_on(nearest_plane_plain, p, step, columns, limits)
        gptq = lattice.gptq(p.weight, p.hessian, step, columns, DAMPING, *(limits or (None, None)))
        babai = plain.babai(basis, p.weight.numpy(), step.numpy(), listed, bounds(limits))
        brain = plain.optimal_brain(damped, p.weight.numpy(), step.numpy(), listed, bounds(limits))
        assert torch.equal(fast, simple)
        assert torch.equal(fast, gptq)
        assert np.array_equal(fast.numpy(), babai)
        assert np.array_equal(fast.numpy(), brain)
        if limits is not None:
            assert share_outside(fast, limits) == 0
            # the limits must bite, or the case tests nothing
            assert share_outside(round_on(nearest_plane, p, step, columns), limits) > 0.01


@pytest.mark.parametrize("rows, n", [(1, 1), (9, 1), (1, 63), (7, 2), (1000, 100), (450, 257)])
@pytest.mark.parametrize("limits", LIMITS)
def test_odd_sizes(rows, n, limits):
    p = problem(n, rows, n)
    for kind in KINDS:
        step, order = steps(n, rows, n, kind), order_of(p, "activation")
        fast = round_on(nearest_plane, p, step, order, limits)
        assert fast.shape == (rows, n) and fast.dtype == torch.int32
        assert torch.equal(fast, round_on(nearest_plane_plain, p, step, order, limits))
        gptq = lattice.gptq(p.weight, p.hessian, step, order, DAMPING, *(limits or (None, None)))
        assert torch.equal(fast, gptq)


@pytest.mark.parametrize("leaf", [1, 2, 3, 16, 31, 64, 128, 129, 130, 1000])
def test_any_leaf(leaf, monkeypatch):
    """Law 1 for any block size."""
    p = problem(2, 800, 129)
    step, order = steps(2, 800, 129, "element"), order_of(p, "min-pivot")
    expected = round_on(nearest_plane_plain, p, step, order)
    monkeypatch.setattr(sys.modules["nearplane.lattice.nearest_plane"], "LEAF", leaf)
    assert torch.equal(round_on(nearest_plane.reference, p, step, order), expected)


@pytest.mark.parametrize("tokens", [5, 60])
def test_rank_deficient(tokens):
    """Fewer tokens than columns: damping alone makes the basis."""
    p = problem(3, 800, 129, tokens=tokens, dead=9)
    step, order = steps(3, 800, 129, "row"), order_of(p, "min-pivot")
    basis = plain.damped_inputs(p.inputs.numpy(), DAMPING)
    fast = round_on(nearest_plane, p, step, order)
    babai = plain.babai(basis, p.weight.numpy(), step.numpy(), order.numpy())
    assert np.array_equal(fast.numpy(), babai)
    assert torch.equal(fast, lattice.gptq(p.weight, p.hessian, step, order, DAMPING))


def test_dead_columns_are_rounded_to_nearest():
    p = problem(4, 300, 63, dead=8)
    step = steps(4, 300, 63, "element")
    dead = p.hessian.diagonal() == 0
    nearest = torch.round(p.weight / step).int()
    for name in ORDERS:
        code = round_on(nearest_plane, p, step, order_of(p, name))
        assert torch.equal(code[:, dead], nearest[:, dead])
        assert not torch.equal(code[:, ~dead], nearest[:, ~dead])


def test_any_square_root_of_the_hessian_gives_the_same_codes():
    """Law 3 [Chen26, Thm. 1]: X, an orthogonal matrix times X, and the symmetric root of H."""
    p = problem(5, 800, 129)
    step, order = steps(5, 800, 129, "row"), order_of(p, "activation")
    basis = plain.damped_inputs(p.inputs.numpy(), DAMPING)
    turn = rotation(len(basis), torch.Generator().manual_seed(1)).numpy()
    values, vectors = torch.linalg.eigh(torch.from_numpy(basis.T @ basis))
    root = ((vectors * values.sqrt()) @ vectors.T).numpy()
    expected = round_on(nearest_plane, p, step, order).numpy()
    for other in (basis, turn @ basis, root):
        code = plain.babai(other, p.weight.numpy(), step.numpy(), order.numpy())
        assert np.array_equal(code, expected)
    rotated = turn[: len(p.inputs), : len(p.inputs)]
    rotated = torch.linalg.qr(torch.from_numpy(rotated.copy())).Q @ p.inputs
    hessian = rotated.T @ rotated / len(rotated)
    turned = round_on(nearest_plane, Problem(p.weight, rotated, hessian), step, order)
    assert np.array_equal(turned.numpy(), expected)


def test_a_rotation_of_the_weights_does_change_codes():
    """Law 4, the negative control: a Hadamard matrix between inputs and weights."""
    p = problem(6, 800, 128)
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < 128:
        hadamard = torch.kron(hadamard, torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64))
    hadamard /= 128**0.5
    rotated = Problem(p.weight @ hadamard, p.inputs @ hadamard, hadamard @ p.hessian @ hadamard)
    step, order = steps(6, 800, 128, "scalar"), torch.arange(128)
    before = round_on(nearest_plane, p, step, order)
    after = round_on(nearest_plane, rotated, step, order)
    assert (before != after).double().mean() > 0.5


@pytest.mark.parametrize("limits", LIMITS)
def test_rounding_again_changes_nothing(limits):
    """Law 7: a lattice point is its own nearest plane point, however it is reached."""
    p = problem(7, 800, 129)
    step = steps(7, 800, 129, "element")
    for name in ORDERS:
        order = order_of(p, name)
        code = round_on(nearest_plane, p, step, order, limits)
        on_lattice = Problem(code * step, p.inputs, p.hessian)
        assert torch.equal(round_on(nearest_plane, on_lattice, step, order, limits), code)
        again = lattice.gptq(
            code * step, p.hessian, step, order, DAMPING, *(limits or (None, None))
        )
        assert torch.equal(again, code)


@laws
@given(st.integers(0, 10**6), st.integers(1, 70), st.sampled_from(KINDS), st.sampled_from(LIMITS))
def test_permuting_inputs_permutes_codes(seed, n, kind, limits):
    """Law 9."""
    p = problem(seed, 40, n)
    step = steps(seed, 40, n, kind)
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=random)
    moved = torch.randperm(n, generator=random)
    shuffled = Problem(
        p.weight[:, moved], p.inputs[:, moved], p.hessian[moved][:, moved].contiguous()
    )
    same_order = moved.argsort()[order]
    moved_step = step.expand(-1, n)[:, moved] if step.shape[1] > 1 else step
    expected = round_on(nearest_plane, p, step, order, limits)[:, moved]
    assert torch.equal(round_on(nearest_plane, shuffled, moved_step, same_order, limits), expected)


@laws
@given(st.integers(0, 10**6), st.integers(1, 70), st.sampled_from(KINDS), st.floats(1e-6, 1e6))
def test_scale_and_sign_of_steps(seed, n, kind, scale):
    """Law 9: weights and steps scale together; a step's sign is its code's sign."""
    p = problem(seed, 40, n)
    step, order = steps(seed, 40, n, kind), order_of(p, "activation")
    code = round_on(nearest_plane, p, step, order)
    scaled = Problem(p.weight * scale, p.inputs, p.hessian)
    assert torch.equal(round_on(nearest_plane, scaled, step * scale, order), code)
    sign = torch.randint(0, 2, step.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    negated = round_on(nearest_plane, p, step * sign, order)
    assert torch.equal(negated, code * sign)
    # a range that mirrors itself keeps the law
    clipped = round_on(nearest_plane, p, step, order, (-2, 2))
    assert torch.equal(round_on(nearest_plane, p, step * sign, order, (-2, 2)), clipped * sign)


@laws
@given(st.integers(0, 10**6), st.floats(0.01, 100.0))
def test_scaling_the_hessian_changes_nothing(seed, scale):
    p = problem(seed, 40, 33)
    step, order = steps(seed, 40, 33, "row"), order_of(p, "activation")
    louder = Problem(p.weight, p.inputs, p.hessian * scale)
    expected = round_on(nearest_plane, p, step, order)
    assert torch.equal(round_on(nearest_plane, louder, step, order), expected)


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("case", ["damping", "identity", "diagonal"])
def test_round_to_nearest_is_the_limit(case, limits):
    """Law 10."""
    p = problem(8, 800, 129)
    # with λ = 1e14 mean(diag) a neighbour pulls by about 1e-14 of a step
    damping = 1e14 if case == "damping" else 0.0
    if case != "damping":
        diagonal = p.hessian.diagonal() if case == "diagonal" else torch.ones(129).double()
        p = Problem(p.weight, p.inputs, torch.diag(diagonal))
    step = steps(8, 800, 129, "element")
    expected = lattice.nearest_integer(p.weight / step, *(limits or (None, None))).int()
    for name in ORDERS:
        order = lattice.order(p.hessian, name, damping)
        code = round_on(nearest_plane, p, step, order, limits, damping)
        assert torch.equal(code, expected)
        gptq = lattice.gptq(p.weight, p.hessian, step, order, damping, *(limits or (None, None)))
        assert torch.equal(gptq, expected)


@pytest.mark.parametrize("condition, dead", [(1e2, 0), (1e6, 20)])
@pytest.mark.parametrize("limits", [None, (-3, 2)])
def test_float32_is_close_to_float64(condition, dead, limits):
    """Law 13: under 1e-3 of 131,072 codes differ, and the objective by less than 0.1 %.

    A code can differ when a real number lies within about n · 2^-24 ≈ 1e-5 steps of a tie, and
    then moves the codes after it: some 1e-4 of them are expected.
    """
    p = problem(9, 512, 256, condition=condition, dead=dead)
    single = Problem(p.weight.float(), p.inputs, p.hessian)
    exact = Problem(single.weight.double(), p.inputs, p.hessian)
    step, order = steps(9, 512, 256, "row").float(), order_of(p, "activation")
    code = round_on(nearest_plane, single, step, order, limits)
    reference = round_on(nearest_plane, exact, step.double(), order, limits)
    assert (code != reference).double().mean() < 1e-3
    losses = [
        plain.loss(exact.weight.numpy(), (c * step.double()).numpy(), p.hessian.numpy()).sum()
        for c in (code, reference)
    ]
    assert abs(losses[0] / losses[1] - 1) < 1e-3


def test_sweep_returns_real_numbers_that_agree():
    """What is compared before rounding cannot hide a small factor; the limit is n · eps · 16."""
    p = problem(10, 200, 129)
    order = order_of(p, "activation")
    factor = lattice.factor(p.hessian, order, DAMPING)
    target = p.weight[:, order.flip(0)].T.contiguous()
    seen, value = torch.empty_like(target), torch.round(target * 2) / 2

    def choose(j, best):
        seen[j] = best
        return value[j].clone()

    before = target.clone()
    error = lattice.sweep(target, lattice.unit_factor(factor), choose)
    assert torch.equal(target, before)
    assert torch.equal(error, target - value)
    unit = factor / factor.diagonal()[:, None]
    expected = target + unit.triu(1) @ error
    size = target.abs() + unit.triu(1).abs() @ error.abs()
    assert ((seen - expected).abs() <= 16 * 129 * torch.finfo(torch.float64).eps * size).all()


def test_inputs_are_left_as_they_were_and_may_be_views():
    p = problem(11, 50, 40)
    step, order = steps(11, 50, 40, "element"), order_of(p, "natural")
    factor = lattice.factor(p.hessian, order, DAMPING)
    loose = [x.T.contiguous().T for x in (p.weight, factor, step)]
    kept = [x.clone() for x in loose]
    code = nearest_plane(*loose)
    assert torch.equal(code, nearest_plane(p.weight, factor, step))
    assert all(torch.equal(a, b) for a, b in zip(loose, kept, strict=True))
    assert torch.equal(code, nearest_plane_plain(*loose))
    lattice.gptq(p.weight, p.hessian, step, order, DAMPING)
    assert torch.equal(p.weight, problem(11, 50, 40).weight)
    assert torch.equal(p.hessian, problem(11, 50, 40).hessian)


def test_nearest_integer():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.6, -2.6])
    assert lattice.nearest_integer(x, None, None).tolist() == [-2, -2, 0, 0, 2, 2, 3, -3]
    assert lattice.nearest_integer(x, -1, 2).tolist() == [-1, -1, 0, 0, 2, 2, 2, -1]
    assert lattice.nearest_integer(x, None, 0).tolist() == [-2, -2, 0, 0, 0, 0, 0, -3]
    assert x.tolist()[0] == -2.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_decides_the_precision(kind):
    """A float64 factor and float64 steps may round a float32 target."""
    p = problem(12, 50, 40)
    step, order = steps(12, 50, 40, kind), order_of(p, "natural")
    factor = lattice.factor(p.hessian, order, DAMPING)
    code = nearest_plane(p.weight.float(), factor, step)
    assert torch.equal(code, nearest_plane(p.weight.float(), factor.float(), step.float()))

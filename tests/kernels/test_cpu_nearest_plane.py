"""Leaves of nearest plane in C++, on every instruction set of this processor, and the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane import lattice
from nearplane.kernels import cpu
from tests.problem import KINDS, problem, steps

if not cpu.available():
    pytest.skip("built without the C++ kernels", allow_module_level=True)

from nearplane.kernels.cpu import nearest_plane as ours

LIMITS = ((None, None), (-3, 2), (-2, None), (None, 1))
RATED = ("scalar", "column")  # steps of rows are divided away
laws = settings(max_examples=25, derandomize=True)
sizes = st.tuples(st.integers(1, 100), st.integers(1, 70))


def factor(p, dtype=torch.float64):
    return lattice.factor(p.hessian, torch.arange(len(p.hessian)), 0.01).to(dtype)


@laws
@given(sizes, st.sampled_from(KINDS), st.sampled_from(LIMITS), st.integers(0, 99))
def codes_are_those_of_the_reference(size, kind, limits, seed):
    p, step = problem(seed, *size), steps(seed, *size, kind)
    code = ours.nearest_plane(p.weight, factor(p), step, *limits)
    expected = lattice.nearest_plane.reference(p.weight, factor(p), step, *limits)
    assert code.dtype == torch.int32 and torch.equal(code, expected)


def test_codes_are_those_of_the_reference(isa):
    codes_are_those_of_the_reference()


@laws
@given(sizes, st.sampled_from([0, 2, 10]), st.sampled_from(RATED), st.integers(0, 99))
def rate_aware_codes_are_those_of_the_reference(size, span, kind, seed):
    (rows, n), draws = size, torch.Generator().manual_seed(seed)
    p, step = problem(seed, rows, n), steps(seed, rows, n, kind).abs().expand(1, n)
    prices = lattice.Prices(
        6 * torch.rand(7, 2 * span + 1, generator=draws),
        torch.randint(0, 3, (rows,), generator=draws),
        torch.randint(0, 5, (n,), generator=draws),
    )
    code = ours.rate_aware_plane(p.weight, factor(p), step, prices)
    expected = lattice.rate_aware_plane.reference(p.weight, factor(p), step, prices)
    assert torch.equal(code, expected)


def test_rate_aware_codes_are_those_of_the_reference(isa):
    rate_aware_codes_are_those_of_the_reference()


@pytest.mark.parametrize("kind", KINDS)
def test_codes_in_float32(isa, kind):
    """2,560 codes; some 1e-4 of them may differ (tests/lattice/test_nearest_plane.py)."""
    p, step = problem(3, 40, 64, dtype=torch.float32), steps(3, 40, 64, kind)
    code = ours.nearest_plane(p.weight, factor(p, torch.float32), step, -4, 3)
    expected = lattice.nearest_plane.reference(p.weight, factor(p, torch.float32), step, -4, 3)
    assert (code != expected).double().mean() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_halves_are_rounded_to_even(isa, dtype):
    wished = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 0.49999997, 2.0**22 + 0.5])
    target = wished.to(dtype)[:, None]
    one = torch.ones(1, 1, dtype=dtype)
    assert ours.nearest_plane(target, one, one)[:, 0].tolist() == [-2, -2, 0, 0, 2, 2, 4, 0, 2**22]
    large = torch.tensor([[2.0**23 + 1], [-(2.0**30)]], dtype=dtype)
    assert ours.nearest_plane(large, one, one)[:, 0].tolist() == [2**23 + 1, -(2**30)]


def test_rows_do_not_depend_on_their_number(isa):
    """Bit for bit, though fewer than a vector holds are padded: one leaf, without products."""
    p, step = problem(5, 67, 32, dtype=torch.float32), steps(5, 67, 32, "column")
    whole = ours.nearest_plane(p.weight, factor(p, torch.float32), step)
    for rows in (1, 31, 33, 66):
        part = ours.nearest_plane(p.weight[:rows], factor(p, torch.float32), step)
        assert torch.equal(part, whole[:rows])


def test_values_that_are_no_numbers_read_nothing_outside(isa):
    """Integers of them mean nothing; the table of thresholds has no place for them."""
    p = problem(1, 40, 8)
    p.weight[::3, 7], p.weight[1::3, 7] = torch.nan, torch.inf
    prices = lattice.Prices(torch.rand(1, 3), torch.zeros(40).long(), torch.zeros(8).long())
    assert ours.rate_aware_plane(p.weight, factor(p), torch.ones(1, 8).double(), prices).shape == (
        40,
        8,
    )


def test_they_serve_this_processor():
    p = problem(1, 3, 4)
    assert {"cpu"} <= set(lattice.nearest_plane.versions) & set(lattice.rate_aware_plane.versions)
    assert ours._serves(p.weight, factor(p)) and not ours._serves(p.weight.half(), factor(p))

"""Laws of rate-aware rounding: what it minimises, where it meets nearest plane, its cells."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane import lattice
from nearplane.lattice import nearest_plane
from nearplane.lattice.rate_aware import Prices, cell_sides, rate_aware_plain, rate_aware_plane
from tests.problem import problem

laws = settings(max_examples=25, deadline=None, derandomize=True)


def prices(seed: int, rows: int, n: int, slope: float, span: int = 5, contexts: int = 4) -> Prices:
    """Return lengths that rise with |z|, not evenly, in contexts of rows and columns."""
    random = torch.Generator().manual_seed(seed + 7)
    rise = torch.rand(contexts, span, generator=random) * 2
    away = torch.cat([torch.zeros(contexts, 1), rise], 1).cumsum(1) + 1
    length = torch.cat([away.flip(1)[:, :-1], away], 1)
    half = contexts // 2
    row = torch.randint(0, half + 1, (rows,), generator=random)
    column = torch.randint(0, contexts - half, (n,), generator=random)
    return Prices(length, row, column, slope)


def on_basis(seed: int, rows: int, n: int, dtype=torch.float64):
    """Return target, factor and column steps of about equal sides, on a basis's columns."""
    p = problem(seed, rows, n, dtype=dtype)
    basis = lattice.basis(p.hessian.double(), "activation", 0.01)
    pivots = basis.factor.diagonal()
    step = (0.8 * pivots.log().mean().exp() / pivots)[None]
    return p.weight[:, basis.columns], basis.factor, step


@pytest.mark.parametrize("slope", [0.0, 0.1155, 0.7])
@pytest.mark.parametrize("n", [1, 31, 32, 33, 129])
def test_blocked_and_plain_agree(n, slope):
    """Exactly, on 780 rows; the plain version compares costs and knows no threshold."""
    target, factor, step = on_basis(n, 780, n)
    found = rate_aware_plane(target, factor, step, prices(n, 780, n, slope))
    plain = rate_aware_plain(target, factor, step, prices(n, 780, n, slope))
    assert torch.equal(found, plain)
    assert found.abs().max() > 1


def test_steps_of_rows_times_steps_of_columns():
    """Dividing a row by its step is the same as multiplying its steps."""
    target, factor, step = on_basis(3, 60, 70)
    row = torch.rand(60, 1, generator=torch.Generator().manual_seed(1)).double() + 0.5
    costs = prices(3, 60, 70, 0.2)
    found = rate_aware_plane(target / row, factor, step, costs)
    assert torch.equal(found, rate_aware_plain(target, factor, row * step, costs))


@pytest.mark.parametrize("flat", ["no slope", "equal lengths"])
def test_it_is_nearest_plane_when_rates_do_not_matter(flat):
    target, factor, step = on_basis(5, 300, 100)
    costs = prices(5, 300, 100, 0.0 if flat == "no slope" else 0.5)
    if flat == "equal lengths":
        costs = Prices(torch.full_like(costs.length, 3.0), costs.row, costs.column, 0.5)
    assert torch.equal(
        rate_aware_plane(target, factor, step, costs), nearest_plane(target, factor, step)
    )


def bits(code, costs: Prices):
    place = (code.clamp(-costs.span, costs.span) + costs.span).long()
    return costs.length[costs.row[:, None] + costs.column, place].sum()


def test_fewer_bits_for_more_error_as_the_slope_rises():
    """Total bits fall and the loss rises with ν, on 40,000 codes."""
    target, factor, step = on_basis(6, 400, 100)
    losses, rates = [], []
    for slope in (0.0, 0.05, 0.12, 0.3):
        costs = prices(6, 400, 100, slope)
        code = rate_aware_plane(target, factor, step, costs)
        losses.append(((target - code * step) @ factor.T).square().sum())
        rates.append(bits(code, costs))
    assert losses == sorted(losses) and rates == sorted(rates, reverse=True)


@laws
@given(st.integers(0, 10**6), st.integers(1, 90), st.floats(0, 1), st.floats(0.1, 3))
def test_residuals_lie_in_the_cells(seed, n, slope, size):
    """|R·error|_j ≤ c_ij R_jj step_j: the box of `cell_sides`, and so its bound; to 1e-9 of it."""
    target, factor, step = on_basis(seed, 40, n)
    step, costs = step * size, prices(seed, 40, n, slope)
    code = rate_aware_plane(target, factor, step, costs)
    residual = ((target - code * step) @ factor.T).abs()
    sides = cell_sides(factor, step, costs)
    assert (residual <= sides / 2 * (1 + 1e-9) + 1e-12).all()
    assert (costs.half_widths() >= 0.5).all() and (costs.half_widths() <= 1).all()


def test_the_widest_cell_is_reached():
    """The bound is tight: a target just inside the widest cell leaves that residual."""
    length = torch.tensor([[5.0, 3.0, 1.0, 3.0, 5.0]])
    costs = Prices(length, torch.zeros(1).long(), torch.zeros(1).long(), 0.2)
    # ½ + 0.2 · 2 / 2 above 0, and as far above 1
    assert costs.half_widths().item() == pytest.approx(0.7, abs=1e-7)
    one = torch.ones(1, 1).double()
    for target, expected in [(0.699, 0), (0.701, 1), (1.699, 1), (1.701, 2), (2.6, 3)]:
        assert rate_aware_plane(one * target, one, one, costs).item() == expected


def test_float32_decides_nearly_as_float64():
    """Thresholds are the same numbers; 1e-4 of 78,000 codes may differ, and the loss by 0.1 %."""
    target, factor, step = on_basis(8, 780, 100)
    costs = prices(8, 780, 100, 0.1155)
    exact = rate_aware_plane(target, factor, step, costs)
    narrow = rate_aware_plane(target.float(), factor.float(), step.float(), costs)
    assert (exact != narrow).double().mean() < 1e-4
    loss = [((target - c * step) @ factor.T).square().sum() for c in (exact, narrow)]
    assert loss[1] == pytest.approx(loss[0].item(), rel=1e-3)

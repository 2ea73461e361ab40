"""Laws of rounding under a Hessian of inputs and one of outputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane import lattice
from nearplane.lattice import RowBlock, moved_targets, nearest_plane, round_two_sided
from tests.problem import problem

laws = settings(max_examples=25, deadline=None, derandomize=True)


def factors(seed: int, rows: int, n: int):
    """Return weights, the factor of the outputs, and that of the inputs, in natural order."""
    p = problem(seed, rows, n, condition=100)
    outputs = problem(seed + 1, 1, rows, condition=100).hessian
    return p.weight, *(lattice.basis(h, "natural", 0.01).factor for h in (outputs, p.hessian))


def in_one_block(factor, size=None):
    return [RowBlock(torch.arange(len(factor)), factor, torch.float64, size)]


def by_nearest_plane(factor, step):
    return lambda target, rows: nearest_plane(target, factor, step)


@laws
@given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 6))
def test_row_by_row_it_is_nearest_plane_on_the_kronecker_product(seed, rows, n):
    """vec(E) under R_O ⊗ R_I: one row of rows · n numbers, integer by integer."""
    weight, outputs, inputs = factors(seed, rows, n)
    step = torch.full((1, n), 0.4, dtype=torch.float64)
    code = round_two_sided(weight, in_one_block(outputs, 1), step, by_nearest_plane(inputs, step))
    whole = torch.kron(outputs, inputs)
    assert code.equal(
        nearest_plane(weight.reshape(1, -1), whole, step.repeat(1, rows)).view(rows, n)
    )


@laws
@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 20))
def test_with_outputs_that_count_alike_rows_are_rounded_by_themselves(seed, rows, n):
    weight, _, inputs = factors(seed, rows, n)
    step = torch.full((1, n), 0.4, dtype=torch.float64)
    rounding = by_nearest_plane(inputs, step)
    alike = in_one_block(torch.eye(rows, dtype=torch.float64))
    assert round_two_sided(weight, alike, step, rounding).equal(rounding(weight, slice(0, rows)))


@pytest.mark.parametrize("block", [1, 5, 16, 64])
def test_what_rows_were_rounded_towards(block):
    weight, outputs, inputs = factors(3, 40, 24)
    step = torch.full((1, 24), 0.4, dtype=torch.float64)
    given_targets = torch.empty_like(weight)

    def noting(target, rows):
        given_targets[rows] = target
        return nearest_plane(target, inputs, step)

    blocks = in_one_block(outputs, block)
    code = round_two_sided(weight, blocks, step, noting)
    moved = moved_targets(weight, blocks, weight - code * step)
    assert torch.allclose(moved, given_targets, atol=1e-12)
    # the residual of every row, with respect to its moved target, lies in its box
    residual = (moved - code * step) @ inputs.T
    assert (residual.abs() <= (0.5 + 1e-9) * step * inputs.diagonal()).all()


@pytest.mark.parametrize("block", [1, 16])
def test_it_lowers_the_loss_that_it_is_made_for(block):
    """The mean loss is in proportion to Σ ‖R_O[rows, rows]‖² over blocks; 4,608 errors: 5 %."""
    weight, outputs, inputs = factors(5, 96, 48)
    step = torch.full((1, 48), 0.4, dtype=torch.float64)
    rounding = by_nearest_plane(inputs, step)

    def loss(code):
        return float((outputs @ (weight - code * step) @ inputs.T).square().sum())

    def expected(block):
        squares = [
            outputs[i : i + block, i : i + block].square().sum() for i in range(0, 96, block)
        ]
        return float(sum(squares))

    plain = loss(rounding(weight, slice(0, 96)))
    found = loss(round_two_sided(weight, in_one_block(outputs, block), step, rounding))
    assert found / plain == pytest.approx(expected(block) / expected(96), rel=0.1)
    assert found < 0.6 * plain

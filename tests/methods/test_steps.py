"""Least-error steps and groups."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane.methods import GPTQ
from nearplane.methods.steps import (
    NORM,
    SHRINKS,
    check_group_size,
    code_range,
    groups_of,
    mse_steps,
)
from nearplane.types import NearplaneError, spread
from tests.problem import problem


def cost(weight, step, bits, group_size):
    """Return Σ |w − s clip(round(w / s))|^2.4 of every group, in float64."""
    wide = spread(step.double(), group_size, weight.shape[1]).expand(weight.shape)
    value = torch.round(weight.double() / wide).clamp(*code_range(bits)) * wide
    error = (weight.double() - value).abs() ** NORM
    return groups_of(error, group_size).sum(2)


def full_range(weight, bits, group_size):
    low, high = code_range(bits)
    return groups_of(weight, group_size).abs().amax(2) * 2 / (high - low)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(1, 100), st.integers(1, 100))
def test_never_worse_than_the_full_range(seed, bits, n, group_size):
    """The 2.4-norm obeys the triangle inequality.

    16 bits move a step by 2^-9 of itself at most, a value by 2^-9 · 2^bits / (2^bits − 1) of the
    group's largest weight, and rounding again to the moved step only helps.
    """
    weight = problem(seed, 10, n, dtype=torch.float32).weight
    group_size = check_group_size(group_size, n)
    step = mse_steps(weight, bits, group_size)
    assert step.shape == (10, -(-n // group_size)) and (step > 0).all()
    full = full_range(weight, bits, group_size)
    found, limit = cost(weight, step, bits, group_size), cost(weight, full, bits, group_size)
    moved = 2.0**-9 * full.double() * 2 ** (bits - 1) * group_size ** (1 / NORM)
    assert (found ** (1 / NORM) <= limit ** (1 / NORM) * (1 + 1e-6) + moved).all()


def test_the_best_of_the_candidates():
    weight = problem(1, 50, 64, dtype=torch.float32).weight
    found = cost(weight, mse_steps(weight, 3, 32), 3, 32)
    shrinks = 1 - 0.8 * torch.arange(SHRINKS) / SHRINKS
    full = full_range(weight, 3, 32)
    best = torch.stack([cost(weight, full * s, 3, 32) for s in shrinks]).amin(0)
    assert (found <= 1.02 * best).all()
    # 3 bits of a Gaussian do want a smaller step than its maximum asks for
    assert (found.sum() < 0.9 * cost(weight, full, 3, 32).sum()).all()


def test_zero_groups_get_a_step_of_one():
    weight = torch.zeros(2, 10)
    weight[0, 0] = 3
    step = mse_steps(weight, 4, 4)
    assert step.shape == (2, 3)
    assert step[0, 1:].tolist() == [1, 1] and step[1].tolist() == [1, 1, 1]


def test_steps_are_exact_in_16_bits():
    step = mse_steps(problem(2, 20, 100, dtype=torch.float32).weight, 3, 16)
    assert torch.equal(step, step.half().float())


def test_weights_are_left_as_they_were():
    weight = problem(3, 20, 100, dtype=torch.float32).weight
    before = weight.clone()
    mse_steps(weight, 3, 16)
    assert torch.equal(weight, before)


def test_groups():
    weight = torch.arange(10.0).reshape(2, 5)
    assert groups_of(weight, 2).tolist() == [[[0, 1], [2, 3], [4, 0]], [[5, 6], [7, 8], [9, 0]]]
    assert code_range(2) == (-2, 1) and code_range(8) == (-128, 127)
    assert check_group_size(128, 100) == 100 and check_group_size(1, 100) == 1
    with pytest.raises(NearplaneError, match="at least 1, not 0"):
        check_group_size(0, 5)


def test_columns_that_matter_more_choose_the_step():
    """Under importance the sum of weighted squares is the least of all candidates'."""
    weight = problem(1, 50, 64, dtype=torch.float32).weight
    importance = torch.logspace(-3, 3, 64)

    def weighted(step):
        wide = step.repeat_interleave(32, 1)
        error = weight - wide * (weight / wide).round().clamp(*code_range(3))
        return (error.square() * importance).unflatten(1, (-1, 32)).sum(2)

    full = full_range(weight, 3, 32)
    best = torch.stack([weighted(full * (1 - 0.8 * i / SHRINKS)) for i in range(SHRINKS)]).amin(0)
    found = weighted(mse_steps(weight, 3, 32, importance))
    # rounding the step to 16 bits moves a value of the steepest column the most
    assert (found <= 1.05 * best).all()
    assert found.sum() < 0.7 * weighted(mse_steps(weight, 3, 32)).sum()


def test_steps_of_gptq_follow_the_hessian():
    """Its loss is less than with steps that know nothing of the inputs, for most rows' sum."""
    p = problem(2, 60, 64, dtype=torch.float32)
    apart = [
        GPTQ(bits=3, group_size=16, hessian_steps=own)(p.weight, p.hessian) for own in (True, False)
    ]
    assert apart[0].loss.sum() < apart[1].loss.sum()

"""The Hessian of a layer's inputs, against float64."""

import math

import pytest
import torch

from nearplane.walk.hessian import NARROW, STRIPES, HessianSum, products_as_exact_as
from tests.problem import problem

EPS = torch.finfo(torch.float32).eps
# around one product or stripes, and widths that stripes do not divide
WIDTHS = [1, 3, STRIPES + 1, 63, 129, NARROW - 1, NARROW, NARROW + 1, NARROW + STRIPES]


def inputs_of(n: int, tokens: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    random = torch.Generator().manual_seed(n)
    # channels a thousand times louder than others, as real activations have
    loud = 10 ** torch.linspace(-1.5, 1.5, n)
    return (torch.randn(tokens, n, generator=random) * loud).to(dtype)


def assert_is_second_moment(total: HessianSum, inputs: torch.Tensor) -> None:
    """Every entry within what a sum of float32 products may be off.

    |error of Σ x_i x_j| <= eps · √tokens · Σ|x_i x_j|, the square root because roundings are as
    often up as down, and Σ|x_i x_j| <= tokens · √(H_ii H_jj); 4 for its spread over entries.
    """
    x = inputs.double()
    exact = x.T @ x / len(x)
    scale = exact.diagonal().sqrt()
    limit = 4 * EPS * math.sqrt(len(x)) * torch.outer(scale, scale)
    hessian = total.mean()
    assert hessian.dtype == torch.float32
    assert torch.equal(hessian, hessian.T)
    assert ((hessian.double() - exact).abs() <= limit).all()


@pytest.mark.parametrize("n", WIDTHS)
def test_the_sum_is_the_second_moment(n):
    inputs = inputs_of(n, 70)
    total = HessianSum(n)
    for part in inputs.split(32):
        total.add(part)
    assert (total.tokens, total.dropped) == (70, 0)
    assert_is_second_moment(total, inputs)


def test_many_tokens():
    inputs = inputs_of(48, 20_000)
    total = HessianSum(48)
    for part in inputs.split(1000):
        total.add(part.reshape(4, 250, 48))
    assert_is_second_moment(total, inputs)


def test_ill_conditioned_inputs():
    made = problem(3, 1, 40, condition=1e10, dead=3)
    total = HessianSum(40)
    total.add(made.inputs.float())
    assert_is_second_moment(total, made.inputs.float())
    assert int((total.mean().diagonal() == 0).sum()) == 3


@pytest.mark.parametrize("n", [63, NARROW + 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_lose_nothing(n, dtype):
    """Products of two bfloat16 numbers are exact in float32, and so the same limit holds.

    A sum held in bfloat16, or inputs rounded on the way, are off by its eps, 60,000 times more.
    """
    inputs = inputs_of(n, 500, dtype)
    total = HessianSum(n)
    total.add(inputs)
    assert_is_second_moment(total, inputs)


def test_float32_inputs_are_not_rounded_to_bfloat16():
    inputs = inputs_of(256, 256) + 1e-4
    total = HessianSum(256)
    total.add(inputs.bfloat16())
    total.add(inputs)
    assert_is_second_moment(total, torch.cat([inputs.bfloat16().float(), inputs]))


def test_views_are_read_as_they_are():
    wide = inputs_of(32, 60)
    total = HessianSum(16)
    total.add(wide[:, ::2])
    assert_is_second_moment(total, wide[:, ::2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_tokens_that_are_not_finite_are_dropped_and_counted(wrong, dtype):
    inputs = inputs_of(20, 30, dtype)
    inputs[4, 7] = inputs[19, 0] = inputs[19, 19] = wrong
    total = HessianSum(20)
    total.add(inputs.reshape(2, 15, 20))
    assert (total.tokens, total.dropped) == (28, 2)
    assert_is_second_moment(total, inputs[torch.isfinite(inputs).all(1)])


def test_infinities_of_both_signs_in_one_token():
    inputs = inputs_of(20, 30)
    inputs[4, 7], inputs[4, 8] = math.inf, -math.inf
    total = HessianSum(20)
    total.add(inputs)
    assert (total.tokens, total.dropped) == (29, 1)


def test_finite_tokens_whose_sum_is_not_are_kept():
    inputs = torch.zeros(3, 4)
    inputs[:2, 0] = 3e38
    inputs[2, 1] = 1.0
    total = HessianSum(4)
    total.add(inputs)
    assert (total.tokens, total.dropped) == (3, 0)
    assert total.mean()[1, 1] == pytest.approx(1 / 3)


def test_nothing_was_added():
    total = HessianSum(5)
    assert torch.equal(total.mean(), torch.zeros(5, 5))
    total.add(torch.empty(0, 5))
    total.add(torch.full((2, 5), math.nan))
    assert (total.tokens, total.dropped) == (0, 2)
    assert torch.equal(total.mean(), torch.zeros(5, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_precision_of_products_is_put_back(dtype):
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if matmul is None:
        pytest.skip("this torch has no such setting")
    before = matmul.fp32_precision
    with products_as_exact_as(dtype):
        assert (matmul.fp32_precision == "bf16") == (dtype == torch.bfloat16)
    assert matmul.fp32_precision == before
    with pytest.raises(ValueError), products_as_exact_as(dtype):
        raise ValueError
    assert matmul.fp32_precision == before

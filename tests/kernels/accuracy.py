"""How far a product may be from the exact one."""

import math

import torch
from torch import Tensor

from tests.kernels.forms import Case

FLOAT32 = 2.0**-24  # half a unit in the last place of a number in 1 .. 2
HALF_UNIT = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
DEVIATIONS = 6  # of a single element
ENOUGH = 64  # elements whose root mean square is near its expectation


def exact(case: Case, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the product in float64."""
    y = x.double() @ case.weight.T
    return y if bias is None else y + bias.double()


def assert_product(case: Case, x: Tensor, y: Tensor, bias: Tensor | None = None) -> None:
    """Assert that y is x · weightᵀ + bias up to the roundings that cannot be avoided."""
    assert y.shape == (*x.shape[:-1], case.rows) and y.dtype == x.dtype
    assert_near(y.double(), exact(case, x, bias), case, x, bias)


def assert_near(
    y: Tensor, expected: Tensor, case: Case, x: Tensor, bias: Tensor | None = None
) -> None:
    """Assert that y is `expected` once rounded to the type of x, but for errors of float32.

    A sum of n terms of random sign is rounded n times, and no partial sum is larger in the mean
    than scale = √Σ term²: their error is at most scale · 2^−24 · √(n / 3), since a rounding error
    is even within half a unit.
    """
    last = HALF_UNIT[x.dtype]
    # below 2^-14 the last place of a float16 no longer shrinks
    rounded = (last * expected.abs()).clamp_min(2.0**-25 if x.dtype == torch.float16 else 0)
    scale = scale_of(case, x, bias)
    excess = ((y - expected).abs() - rounded).clamp_min(0) / scale.clamp_min(1e-300)
    limit = FLOAT32 * math.sqrt(case.additions / 3)
    if x.numel() > case.most_rows(x.dtype) * case.columns:
        limit = math.hypot(limit, last / math.sqrt(3))  # the weights were rounded too
    assert excess.isfinite().all()
    assert not (excess > DEVIATIONS * limit).any()
    if excess.numel() >= ENOUGH:
        assert excess.square().mean().sqrt() <= limit


def scale_of(case: Case, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return √Σ term² of every element of the result; an outlier's term is one of its own.

    An integer of more than one part, such as low and high bits, may have parts that are as large
    as all integers are apart, or as the 8 bits of the widest plane.
    """
    size = case.size + case.parted * min(case.apart, 256) * case.step.abs()
    square = x.double().square() @ size.square().T
    return (square if bias is None else square + bias.double().square()).sqrt()

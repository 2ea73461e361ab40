"""Sum x xᵀ over the inputs x of a layer: its Hessian."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from nearplane.walk.hidden_states import CPU
from nearplane.walk.ranks import Ranks

STRIPES = 4  # only the stripes on and above the diagonal are computed: 5/8 of the full product
NARROW = 1024  # columns up to which one product is as fast
TRIED_TOKENS = 2048  # of a product in a 16-bit type: as many as a batch has
FURTHEST = 1e-5  # of its largest number that any may be off; sums in 16 bits are off by 1e-3


class HessianSum:
    """Σ x xᵀ over tokens, in float32, without the tokens that hold NaN or infinity.

    - `device`: where the inputs are, and the sum with them.
    """

    def __init__(self, columns: int, device: torch.device = CPU):
        self.sum = torch.zeros(columns, columns, device=device)
        self.tokens = 0
        self.dropped = 0

    def add(self, inputs: Float[Tensor, "*batch columns"]) -> None:
        """Add every token of `inputs`."""
        x = inputs.reshape(-1, inputs.shape[-1])
        # this sum is NaN or infinite if any number is
        if not torch.isfinite(x.sum(dtype=torch.float32)):
            finite = torch.isfinite(x).all(1)
            self.dropped += int((~finite).sum())
            x = x[finite]
        self.tokens += len(x)
        with products_as_exact_as(x.dtype):
            add_upper_gram_(self.sum, as_multiplied(x)[0])

    def add_up(self, ranks: Ranks) -> None:
        """Add the sums of the other processes."""
        ranks.sum_(self.sum)
        self.tokens, self.dropped = ranks.total(self.tokens), ranks.total(self.dropped)

    def mean(self) -> Float32[Tensor, "columns columns"]:
        """Return the Hessian, the sum over the number of tokens; overwrites the sum."""
        mirror_(self.sum)
        return self.sum.div_(max(self.tokens, 1))


def mirror_(upper: Float32[Tensor, "n n"]) -> None:
    """Copy the upper triangle of a matrix to its lower triangle."""
    for first in range(0, len(upper), NARROW):
        own, later = slice(first, first + NARROW), slice(first + NARROW, None)
        triangle = upper[own, own].triu()
        upper[own, own] = triangle + triangle.triu(1).T
        upper[later, own] = upper[own, later].T


@contextmanager
def products_as_exact_as(dtype: torch.dtype) -> Iterator[None]:
    """Let float32 products of numbers that came from bfloat16 run on bfloat16 units.

    Their inputs lose nothing and their sums stay float32, so this only saves time.
    """
    products: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if dtype != torch.bfloat16 or products is None:
        yield
        return
    precision = products.fp32_precision
    products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = precision


def as_multiplied(*factors: Float[Tensor, "tokens n"]) -> list[Float[Tensor, "tokens n"]]:
    """Return matrices of one type as `add_product_` takes them: in float32 where it is needed."""
    narrow = sums_in_float32(factors[0].dtype, factors[0].device)
    return [each if narrow else each.float() for each in factors]


@cache
def sums_in_float32(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device's products of matrices of a 16-bit type are as exact as those in float32.

    Products of two such numbers are exact in float32, so that only the sums matter. It is tried
    once, against float64: tensor cores take 16-bit types many times as fast as float32.
    """
    if device == CPU or dtype not in (torch.bfloat16, torch.float16):
        return False
    x = torch.randn(TRIED_TOKENS, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = x.T.double() @ x.double()
    try:
        found = narrow_product(x.to(device), x.to(device)).cpu()
    except (RuntimeError, TypeError):
        return False  # torch has none here
    off = (found.double() - expected).abs().max() / expected.abs().max()
    return found.dtype == torch.float32 and bool(off <= FURTHEST)


def narrow_product(
    left: Float[Tensor, "tokens n"], right: Float[Tensor, "tokens m"]
) -> Float32[Tensor, "n m"]:
    """Return leftᵀ · right of a 16-bit type in float32.

    Raises RuntimeError or TypeError where torch has no such product.
    """
    return torch.mm(left.T, right, out_dtype=torch.float32)


def add_product_(
    total: Float32[Tensor, "n m"], left: Float[Tensor, "tokens n"], right: Float[Tensor, "tokens m"]
) -> None:
    """Add leftᵀ · right to `total`; both are from `as_multiplied`."""
    if left.dtype == torch.float32 or not len(left):
        total.addmm_(left.float().T, right.float())
        return
    # a few rows of the product at a time, which take no more memory than the inputs in float32
    some = max(NARROW, len(left))
    for rows, columns in zip(total.split(some), left.split(some, 1), strict=True):
        rows.add_(narrow_product(columns, right))


def add_upper_gram_(total: Float32[Tensor, "n n"], x: Float[Tensor, "tokens n"]) -> None:
    """Add xᵀx to the upper triangle of `total`; below the diagonal stripes nothing is written."""
    n = len(total)
    width = n if n <= NARROW else -(-n // STRIPES)
    for first in range(0, n, width):
        stripe = slice(first, min(first + width, n))
        add_product_(total[stripe, first:], x[:, stripe], x[:, first:])

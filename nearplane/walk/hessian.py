"""Sum x xᵀ over the inputs x of a layer: its Hessian."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from nearplane.walk.hidden_states import CPU
from nearplane.walk.ranks import Ranks

STRIPES = 4  # only the stripes on and above the diagonal are computed: 5/8 of the full product
NARROW = 1024  # columns up to which one product is as fast


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
            add_upper_gram_(self.sum, x.float())

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


def add_upper_gram_(total: Float32[Tensor, "n n"], x: Float32[Tensor, "tokens n"]) -> None:
    """Add xᵀx to the upper triangle of `total`; below the diagonal stripes nothing is written."""
    n = len(total)
    width = n if n <= NARROW else -(-n // STRIPES)
    for first in range(0, n, width):
        stripe = slice(first, min(first + width, n))
        total[stripe, first:].addmm_(x[:, stripe].T, x[:, first:])

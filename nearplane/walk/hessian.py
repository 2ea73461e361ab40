"""Accumulating the second moment of a layer's inputs."""

import torch
from jaxtyping import Float, Float32
from torch import Tensor

STRIPES = 4  # only the stripes on and above the diagonal are computed: 5/8 of the full product


class HessianSum:
    """Σ x xᵀ over tokens, in float32, without the tokens that hold NaN or infinity."""

    def __init__(self, columns: int):
        self.sum = torch.zeros(columns, columns)
        self.tokens = 0
        self.dropped = 0

    def add(self, inputs: Float[Tensor, "*batch columns"]) -> None:
        """Add every token of `inputs`."""
        x = inputs.reshape(-1, inputs.shape[-1]).float()
        finite = torch.isfinite(x).all(1)
        if not finite.all():
            self.dropped += int((~finite).sum())
            x = x[finite]
        self.tokens += len(x)
        add_upper_gram_(self.sum, x)

    def mean(self) -> Float32[Tensor, "columns columns"]:
        """Return the Hessian: the sum over the number of tokens, made symmetric."""
        upper = self.sum.triu()
        return (upper + upper.triu(1).T) / max(self.tokens, 1)


def add_upper_gram_(total: Float32[Tensor, "n n"], x: Float32[Tensor, "tokens n"]) -> None:
    """Add xᵀx to the upper triangle of `total`; below the diagonal stripes nothing is written."""
    n = len(total)
    width = max(64, -(-n // STRIPES))
    for first in range(0, n, width):
        stripe = slice(first, min(first + width, n))
        total[stripe, first:].addmm_(x[:, stripe].T, x[:, first:])

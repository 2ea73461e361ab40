"""The one maker of quantization problems: weights, inputs and the Hessian that they make."""

from dataclasses import dataclass

import torch
from torch import Tensor

# matrices this small lose more to threads that wait for each other than they gain
torch.set_num_threads(1)

KINDS = ("scalar", "row", "column", "group", "element")


@dataclass(frozen=True)
class Problem:
    """One layer: weight (rows, n), inputs (tokens, n), hessian = inputsᵀ inputs / tokens."""

    weight: Tensor
    inputs: Tensor
    hessian: Tensor


def problem(
    seed: int,
    rows: int,
    n: int,
    *,
    condition: float = 1e4,
    tokens: int | None = None,
    dead: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """Return Gaussian weights and correlated inputs.

    - `condition`: ratio of the largest to the smallest eigenvalue of the inputs' covariance.
    - `tokens`: 2n + 8 unless told; fewer than n make a rank-deficient Hessian.
    - `dead`: inputs that are always zero, spread over the columns.
    """
    random = torch.Generator().manual_seed(seed)
    tokens = 2 * n + 8 if tokens is None else tokens
    weight = torch.randn(rows, n, generator=random, dtype=torch.float64)
    white = torch.randn(tokens, n, generator=random, dtype=torch.float64)
    turn = rotation(n, random)
    spectrum = condition ** -torch.linspace(0, 0.5, n, dtype=torch.float64)
    inputs = white * spectrum @ turn
    # a few loud channels, as real activations have
    loud = torch.randint(0, n, (1 + n // 32,), generator=random)
    inputs[:, loud] *= 5
    inputs[:, torch.randperm(n, generator=random)[:dead]] = 0
    hessian = inputs.T @ inputs / tokens
    return Problem(weight.to(dtype), inputs, hessian.to(dtype))


def rotation(n: int, random: torch.Generator) -> Tensor:
    """Return a random orthogonal matrix."""
    return torch.linalg.qr(torch.randn(n, n, generator=random, dtype=torch.float64)).Q


def steps(seed: int, rows: int, n: int, kind: str, size: float = 0.4) -> Tensor:
    """Return steps of either sign around `size` that broadcast to (rows, n)."""
    random = torch.Generator().manual_seed(seed + 1000)
    shape = {
        "scalar": (1, 1),
        "row": (rows, 1),
        "column": (1, n),
        "group": (rows, -(-n // 16)),
        "element": (rows, n),
    }[kind]
    magnitude = size * 2 ** torch.randn(shape, generator=random, dtype=torch.float64).clamp(-2, 2)
    sign = torch.randint(0, 2, shape, generator=random) * 2 - 1
    step = magnitude * sign
    # the last group is short unless 16 divides n
    return step.repeat_interleave(16, dim=1)[:, :n] if kind == "group" else step

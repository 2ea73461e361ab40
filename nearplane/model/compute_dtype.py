"""Choose the type of a model's products: as stored, or float32 where that is faster.

Processors without instructions for bfloat16 or float16 emulate them, at a tenth of the speed of
float32 on some. Which ones do is measured, not looked up.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from nearplane.types import NearplaneError

AUTO = "auto"
TYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
# a 16-bit type, which takes half the memory, is used up to this many times the time of float32
SLOWEST = 1.2
TOKENS, ROWS, COLUMNS = 128, 512, 512  # of the product that is measured
REPETITIONS = 5


def check_arithmetic(name: str) -> None:
    """Raise NearplaneError unless `name` is "auto" or the name of a type."""
    if name != AUTO and name not in TYPES:
        raise NearplaneError(
            f"no arithmetic is called {name!r}; there are auto, {', '.join(TYPES)}"
        )


def arithmetic_for(
    stored: torch.dtype, name: str = AUTO, device: torch.device | str | None = None
) -> torch.dtype:
    """Return the type that products of a model stored in the type `stored` run in.

    - `name`: "float32", "bfloat16" or "float16"; "auto" is `stored`, but float32 where this
      processor multiplies `stored` more than SLOWEST times as slowly.
    - `device`: where the model is to run; other devices than the CPU compute in `stored`.

    Raises NearplaneError for another name.
    """
    check_arithmetic(name)
    if name != AUTO:
        return TYPES[name]
    elsewhere = device is not None and torch.device(device).type != "cpu"
    if elsewhere or stored not in (torch.bfloat16, torch.float16):
        return stored
    return stored if slowdown(stored) <= SLOWEST else torch.float32


def precise(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for a type of fewer bits, else the type.

    What one layer's error changes in a model's predictions is less than what rounding all
    activations to 16 bits changes.
    """
    return torch.float32 if dtype.itemsize < torch.float32.itemsize else dtype


@cache
def slowdown(dtype: torch.dtype) -> float:
    """Return how many times as long as in float32 a product takes in `dtype` on this processor.

    Measured once a process, in a fraction of a second: the shortest of REPETITIONS of each type.
    """
    products = [product_in(kind) for kind in (dtype, torch.float32)]
    shortest = [float("inf")] * 2
    for repetition in range(REPETITIONS + 1):
        for index, product in enumerate(products):
            started = time.perf_counter()
            product()
            # the first repetition only warms up
            if repetition:
                shortest[index] = min(shortest[index], time.perf_counter() - started)
    return shortest[0] / shortest[1]


def product_in(dtype: torch.dtype) -> Callable[[], Any]:
    """Return a function that multiplies activations by a weight, as a linear layer does."""
    x, weight = torch.ones(TOKENS, COLUMNS, dtype=dtype), torch.ones(ROWS, COLUMNS, dtype=dtype)
    return lambda: nn.functional.linear(x, weight)


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a type without its module: "float32"."""
    return str(dtype).removeprefix("torch.")

"""A matrix on which this processor's ways to multiply are timed, once a process."""

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nearplane import codes
from nearplane.kernels.cpu.layout import pack

SIDE = 1024  # of the matrix


@functools.cache
def layouts() -> tuple[Tensor | None, Tensor | None]:
    """Return the compact and the fast layout of a matrix of 3 bits a weight."""
    draws = torch.Generator().manual_seed(0)
    code = (2 * torch.randn(SIDE, SIDE, generator=draws)).round().int()
    record = codes.pack(code, torch.ones(1, 1), SIDE, None, codes.Rans(contexts=False))[0]
    return pack(record), pack(record, input_bits=15)


def seconds(calls: list[Callable[[], Any]], trials: int) -> list[float]:
    """Return the shortest time of each call, of several in turns."""
    best = [float("inf")] * len(calls)
    for _ in range(trials):
        for place, call in enumerate(calls):
            started = time.perf_counter()
            call()
            best[place] = min(best[place], time.perf_counter() - started)
    return best

"""The precision of float32 products on accelerators, which torch may lower by a setting."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Let float32 products of another device than the CPU be float32's inside a `with` block."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    # torch renamed the setting in 2.9, and refuses a mixture of both names
    name, exact, own = "fp32_precision", "ieee", [cuda, getattr(cudnn, "conv", None)]
    if not hasattr(cuda, name):
        name, exact, own = "allow_tf32", False, [cuda, cudnn]
    found = [each for each in own if device.type != "cpu" and hasattr(each, name)]
    before = [(each, getattr(each, name)) for each in found]
    for each in found:
        setattr(each, name, exact)
    try:
        yield
    finally:
        for each, value in before:
            setattr(each, name, value)

"""Buffers that no file holds: a model's class computes them, in the type that it is loaded in.

A scale of √640 is 25.25 in a model that is loaded in bfloat16, and 25.298 in one that is loaded in
float32. So a model whose weights are widened while they are used takes these buffers anew.
"""

import copy
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def buffers_in(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return, by name, the floating-point buffers that `model` would have if loaded in `dtype`.

    Only those that are not stored, and that the `_init_weights` of a transformers model fills. None
    where that raises an error: a checkpoint that computes something else is refused later.
    """
    make = getattr(type(model), "_from_config", None)
    if make is None or not any(True for _ in not_stored(model)):
        return {}
    config: Any = copy.deepcopy(model.config)
    with torch.device("meta"):
        twin = make(config, dtype=dtype)
    found = {}
    for module, prefix in {module: prefix for module, prefix, _ in not_stored(twin)}.items():
        # of NaN, so that what is not filled is seen; all else stays on the meta device
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.full(buffer.shape, torch.nan).to(buffer.dtype)
        # a class of its own, which may raise any error without numbers
        with suppress(Exception):
            filled_by(twin, prefix)._init_weights(module)
    for module, prefix, name in not_stored(twin):
        buffer = module.get_buffer(name)
        if not buffer.isnan().any():
            found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def filled_by(model: nn.Module, name: str) -> Any:
    """Return the innermost transformers model that holds the module of that name."""
    parts = name.split(".") if name else []
    inside = [model.get_submodule(".".join(parts[:count])) for count in range(len(parts) + 1)]
    return [each for each in inside if hasattr(each, "_init_weights")][-1]


def not_stored(model: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """Return the module, its name, and the buffer's, of every floating-point buffer not stored."""
    return [
        (module, prefix, name)
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
        if module._buffers.get(name) is not None and module.get_buffer(name).is_floating_point()
    ]

"""Where a checkpoint names single experts, a model gets them one by one before it is loaded.

| theirs | ours |
|---|---|
| one module with 3-D tensors for all experts of a layer | `Experts`, a linear layer a matrix |
"""

from collections.abc import Callable, Iterable

from torch import nn

from nearplane.model.experts import split_experts_


def split_named_experts_(
    model: nn.Module, layers: Iterable[str], aliases: Callable[[str], list[str]]
) -> None:
    """Let `Experts` stand in for the fused modules of which `layers` has a part.

    - `aliases`: what the model may call what a checkpoint calls so.
    """
    above = {above for layer in layers for above in names_above(layer)}
    wanted = {alias for name in above for alias in aliases(name)}
    split_experts_(model, wanted)


def names_above(layer: str) -> list[str]:
    """Return the names of the modules around a layer: a.b and a of a.b.c."""
    parts = layer.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]

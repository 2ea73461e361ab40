"""Watching a model run once: which layers share their inputs, and in which order they come."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from nearplane.walk.blocks import Layer, find_blocks, layers_of

OBSERVED_TOKENS = 16


@dataclass(frozen=True)
class Stage:
    """Layers of one block that are given the same tensor, so that they share a Hessian.

    - `times`: how often one run of the block calls them.
    """

    layers: list[Layer]
    times: int


@dataclass(frozen=True)
class Plan:
    """What was seen of a model: its blocks, their stages in the order they run.

    - `tuples`: which blocks return a tuple that starts with the hidden states.
    - `silent`: layers that no token reached.
    """

    name: str
    blocks: nn.ModuleList
    tuples: list[bool]
    stages: list[list[Stage]]
    silent: list[Layer]

    def shared(self, layer: Layer) -> bool:
        """Whether the layer's module stands in more than one block."""
        return sum(layer.module is m for b in self.blocks for m in b.modules()) > 1

    @property
    def layers(self) -> list[Layer]:
        return [layer for stages in self.stages for stage in stages for layer in stage.layers]


@dataclass
class Watch:
    """Records every call of the layers of one block; keeps inputs so that no address is reused."""

    layers: list[Layer]
    calls: dict[str, list[Tensor]] = field(default_factory=dict)
    is_tuple: bool = False

    def hooks(self, block: nn.Module) -> list[Any]:
        """Register the hooks that record."""
        watched = [
            layer.module.register_forward_pre_hook(
                lambda _, args, name=layer.name: self.calls.setdefault(name, []).append(args[0])
            )
            for layer in self.layers
        ]
        return [*watched, block.register_forward_hook(self.note_output)]

    def note_output(self, _: nn.Module, args: tuple, output: Any) -> None:
        self.is_tuple = isinstance(output, tuple)

    def stages(self) -> list[Stage]:
        """Return the layers that ran, grouped by the tensor they were given, in running order."""
        groups: dict[tuple, list[Layer]] = {}
        by_name = {layer.name: layer for layer in self.layers}
        for name, inputs in self.calls.items():
            groups.setdefault(tuple(map(identity, inputs)), []).append(by_name[name])
        return [Stage(group, len(key)) for key, group in groups.items()]


def identity(tensor: Tensor) -> tuple:
    """Return what tells two live tensors apart: their memory and how it is read."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def observe(model: nn.Module, tokens: Int64[Tensor, "n length"]) -> Plan:
    """Run the model on a few tokens and return its blocks and stages.

    Raises NearplaneError when the model has no blocks.
    """
    name, blocks = find_blocks(model)
    watches = [Watch(layers_of(b, f"{name}.{i}")) for i, b in enumerate(blocks)]
    with ExitStack() as stack, torch.no_grad():
        for watch, block in zip(watches, blocks, strict=True):
            for hook in watch.hooks(block):
                stack.callback(hook.remove)
        model(input_ids=tokens[:1, :OBSERVED_TOKENS], use_cache=False)
    silent = [la for w in watches for la in w.layers if la.name not in w.calls]
    stages = [watch.stages() for watch in watches]
    return Plan(name, blocks, [w.is_tuple for w in watches], stages, silent)

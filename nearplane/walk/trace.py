"""Watching a model run once: which layers share their inputs, and in which order they come."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nearplane.model.blocks import Layer, find_blocks
from nearplane.model.experts import Expert, Experts, split_experts_
from nearplane.model.selection import linear_layers
from nearplane.walk.capture import Stop, hidden_of, replaced_forward
from nearplane.walk.placement import Placement
from nearplane.walk.rms_norm import is_rms_norm

TRACED_TOKENS = 16


@dataclass(frozen=True)
class Stage:
    """Layers of one block that are given the same tensor, so that they share a Hessian.

    - `times`: how often one run of the block calls them.
    - `late`: those that run after a layer of another stage has.
    - `among`, `expert`: the experts that these are layers of, and which of them; else None.
    """

    layers: list[Layer]
    times: int
    late: list[Layer] = field(default_factory=list)
    among: Experts | None = None
    expert: Expert | None = None


@dataclass(frozen=True)
class ModelTrace:
    """What was seen of a model: its blocks, their stages in the order they run.

    - `tuples`: which blocks return a tuple that starts with the hidden states.
    - `unreached`: layers that no token reached.
    - `added`: for the layers whose output the block adds to its hidden states, the module that
      gives what is added: the layer, or a norm behind it.
    """

    name: str
    blocks: nn.ModuleList
    tuples: list[bool]
    stages: list[list[Stage]]
    unreached: list[Layer]
    added: dict[str, nn.Module] = field(default_factory=dict)

    def shared(self, layer: Layer) -> bool:
        """Whether the layer's module stands in more than one block."""
        return self.standings[layer.module] > 1

    @cached_property
    def standings(self) -> Counter[nn.Module]:
        """In how many blocks a module stands."""
        return Counter(module for block in self.blocks for module in block.modules())

    @property
    def layers(self) -> list[Layer]:
        return [layer for stages in self.stages for stage in stages for layer in stage.layers]


@dataclass
class BlockRecorder:
    """Records what the parts of one block are given, and what its layers make of it.

    Inputs are kept so that no address is reused.

    - `mixtures`: the experts of the block, by name. What their layers are given is not looked at,
      as a few tokens reach some of them only.
    """

    layers: list[Layer]
    mixtures: dict[str, Experts] = field(default_factory=dict)
    calls: dict[str, list[Tensor]] = field(default_factory=dict)
    made: list[tuple[nn.Module, Tensor | None, Tensor]] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    is_tuple: bool = False
    stages: list[Stage] = field(default_factory=list)
    added: dict[str, nn.Module] = field(default_factory=dict)

    @classmethod
    def of(cls, block: nn.Module, prefix: str) -> "BlockRecorder":
        mixtures = {n: m for n, m in block.named_modules() if isinstance(m, Experts)}
        named = {f"{prefix}.{name}": mixture for name, mixture in mixtures.items()}
        return cls(linear_layers(block, prefix), named)

    def run(self, block: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """Return what `forward`, the block's own, gives, and conclude what there was to see."""
        with ExitStack() as stack:
            for hook in self.hooks(block):
                stack.callback(hook.remove)
            self.note_input(block, args, kwargs)
            output = forward(*args, **kwargs)
            self.note_output(output)
        self.conclude()
        return output

    def hooks(self, block: nn.Module) -> list[Any]:
        """Register the hooks that record."""
        watched = [
            layer.module.register_forward_pre_hook(
                lambda _, args, name=layer.name: self.calls.setdefault(name, []).append(args[0])
            )
            for layer in self.layers
        ]
        for name, mixture in self.mixtures.items():
            watched.append(mixture.entry.register_forward_pre_hook(partial(self.note_entry, name)))
        for module in block.modules():
            if module is not block:
                watched.append(module.register_forward_pre_hook(self.note_input, with_kwargs=True))
                watched.append(module.register_forward_hook(self.note_made))
        return watched

    def note_entry(self, name: str, _: nn.Module, args: tuple) -> None:
        self.calls.setdefault(name, []).append(args[0])

    def note_input(self, _: nn.Module, args: tuple, kwargs: dict) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        if isinstance(given, Tensor):
            self.inputs.append(given)

    def note_output(self, output: Any) -> None:
        self.is_tuple = isinstance(output, tuple)
        self.inputs.append(hidden_of(output))

    def note_made(self, module: nn.Module, args: tuple, output: Any) -> None:
        given = args[0] if args and isinstance(args[0], Tensor) else None
        if isinstance(hidden_of(output), Tensor):
            self.made.append((module, given, hidden_of(output)))

    def conclude(self) -> None:
        """Note the stages and what is added, while the weights are there; let the rest go."""
        self.stages, self.added = self.found_stages(), self.found_added()
        self.calls, self.made, self.inputs = {}, [], []

    def found_added(self) -> dict[str, nn.Module]:
        """Return the layers whose output, as it is or normed, is added to the hidden states.

        The sum must be what some part of the block is given, or gives in the end, bit by bit. A
        norm must be an RMS norm.
        """
        experts = self.layers_of_experts
        names = {la.module: la.name for la in self.layers if la.name not in experts}
        maker = {identity(made): names[m] for m, _, made in self.made if m in names}
        found: dict[str, nn.Module] = {}
        hidden = self.inputs[0] if self.inputs else None
        for module, given, made in self.made:
            if hidden is None or made.numel() != hidden.numel():
                continue
            # some families flatten batches on the way
            total = hidden + made.reshape(hidden.shape)
            alike = (x for x in self.inputs if x.numel() == total.numel())
            if not any(x.reshape(total.shape).equal(total) for x in alike):
                continue
            hidden = total
            if module in names:
                found[names[module]] = module
            elif (
                given is not None and identity(given) in maker and is_rms_norm(module, given, made)
            ):
                found[maker[identity(given)]] = module
        return found

    def found_stages(self) -> list[Stage]:
        """Return the layers that ran, grouped by the tensor they were given, in running order.

        All layers of experts are there, in the place where the first token entered the experts.
        """
        groups: dict[tuple, list[Stage]] = {}
        last: tuple = ()
        by_name = {layer.name: layer for layer in self.layers}
        for name, inputs in self.calls.items():
            key = tuple(map(identity, inputs))
            if name in self.mixtures:
                groups[(name,)] = list(stages_of_experts(self.mixtures[name], name))
            elif name in self.layers_of_experts:
                continue
            elif key in groups:
                groups[key][0].layers.append(by_name[name])
                if key != last:
                    groups[key][0].late.append(by_name[name])
            else:
                groups[key] = [Stage([by_name[name]], len(key))]
            last = key
        return [stage for group in groups.values() for stage in group]

    @cached_property
    def layers_of_experts(self) -> set[str]:
        inside = {module for mixture in self.mixtures.values() for module in mixture.modules()}
        return {layer.name for layer in self.layers if layer.module in inside}

    @property
    def unreached(self) -> list[Layer]:
        """The layers that are in no stage."""
        reached = {layer.name for stage in self.stages for layer in stage.layers}
        return [layer for layer in self.layers if layer.name not in reached]


def stages_of_experts(among: Experts, name: str) -> Iterator[Stage]:
    """Yield the stages of all experts: first what is given an expert's tokens, then its down."""
    names = {module: f"{name}.{inner}" for inner, module in among.named_modules()}
    for expert in among:
        for modules in (expert.first, [expert.down_proj]):
            layers = [Layer(names[m], m) for m in modules]
            yield Stage(layers, 1, among=among, expert=expert)


def identity(tensor: Tensor) -> tuple:
    """Return what tells two live tensors apart: their memory and how it is read."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def trace_model(
    model: nn.Module, tokens: Int64[Tensor, "n length"], weights: Placement | None = None
) -> ModelTrace:
    """Run the model on a few tokens and return its blocks and stages.

    Fused experts are replaced by `Experts` for good.

    - `weights`: where they are and what computes with them; in the model, as stored, if None.

    Raises NearplaneError when the model has no blocks.
    """
    split_experts_(model)
    name, blocks = find_blocks(model)
    watches = [BlockRecorder.of(block, f"{name}.{index}") for index, block in enumerate(blocks)]
    forwards = [block.forward for block in blocks]
    weights = weights or Placement(model)

    def watched(index: int, args: tuple, kwargs: dict) -> Any:
        with weights.block(index):
            return watches[index].run(blocks[index], forwards[index], args, kwargs)

    with weights.outside(), replaced_forward(blocks, watched), torch.no_grad():
        model(input_ids=tokens[:1, :TRACED_TOKENS], use_cache=False)
    unreached = [layer for watch in watches for layer in watch.unreached]
    added = {name: module for watch in watches for name, module in watch.added.items()}
    stages = [watch.stages for watch in watches]
    return ModelTrace(name, blocks, [w.is_tuple for w in watches], stages, unreached, added)


def head_inputs(
    model: nn.Module,
    trace: ModelTrace,
    head: Layer,
    tokens: Int64[Tensor, "n length"],
    hidden: Tensor,
) -> Float[Tensor, "n length columns"]:
    """Return what the head is given when the last block gives `hidden`."""
    seen: list[Tensor] = []

    def take(_: nn.Module, args: tuple) -> None:
        seen.append(args[0])
        raise Stop

    def hand_on(index: int, args: tuple, kwargs: dict) -> Any:
        return (hidden,) if trace.tuples[index] else hidden

    hook = head.module.register_forward_pre_hook(take)
    try:
        with replaced_forward(trace.blocks, hand_on), torch.no_grad():
            model(input_ids=tokens, use_cache=False)
    except Stop:
        pass
    finally:
        hook.remove()
    return seen[0]

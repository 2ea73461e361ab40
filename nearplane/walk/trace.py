"""Trace a short run of a model: which layers share an input, their order, the residual sums."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from nearplane.model.blocks import Layer, find_blocks, linear_modules
from nearplane.model.experts import Expert, Experts, split_experts_
from nearplane.model.forward_arguments import first_input, forward_arguments
from nearplane.model.selection import linear_layers
from nearplane.types import NearplaneError, naming_errors
from nearplane.walk.capture import Call, Containers, hidden_of, replaced_blocks, tensors_in
from nearplane.walk.placement import Placement
from nearplane.walk.rms_norm import is_rms_norm

TRACED_TOKENS, MANY_TOKENS = 16, 512


@dataclass(frozen=True)
class Stage:
    """Layers of one block whose input is the same tensor, so that they share a Hessian.

    - `times`: how often one forward pass of the block calls them.
    - `late`: those that run after a layer of another stage has run.
    - `mixture`, `expert`: for layers of an expert, the mixture and the expert; else None.
    """

    layers: list[Layer]
    times: int
    late: list[Layer] = field(default_factory=list)
    mixture: Experts | None = None
    expert: Expert | None = None


@dataclass(frozen=True)
class ModelTrace:
    """What one run of a model shows: its blocks, and their stages in the order they run.

    - `name`: of the list of blocks. `order`: the indices of the blocks as they were called; a block
      may be called several times, or never.
    - `unreached`: layers that no token reached.
    - `added`: of every layer whose output is added to the hidden states, the module that computes
      the summand: the layer itself, or a norm that its output goes through.
    - `used_again`: layers whose weight others have too, or whose block is called again.
    - `changes_arguments`: whether a block changes a dictionary or another object that it is given.
    - `changes_in_place`: whether a block changes a tensor that it is given.
    - `seen`: what the model computed, until the walk has compared its own passes with it.
    """

    name: str
    blocks: nn.ModuleList
    order: list[int]
    stages: list[list[Stage]]
    unreached: list[Layer]
    added: dict[str, nn.Module] = field(default_factory=dict)
    used_again: set[nn.Module] = field(default_factory=set)
    changes_arguments: bool = False
    changes_in_place: bool = False
    seen: "Seen" = field(default_factory=lambda: Seen())

    def name_of(self, index: int) -> str:
        """The full name of a block."""
        return f"{self.name}.{index}"

    def shared(self, layer: Layer) -> bool:
        """Whether the layer's weight is used again: by another layer, or in a later call."""
        return layer.module in self.used_again

    @property
    def layers(self) -> list[Layer]:
        return [layer for stages in self.stages for stage in stages for layer in stage.layers]


@dataclass
class Seen:
    """What a forward pass computed: the tensors that every call of a block returned, and the end.

    - `tokens`: that the model was given. `end`: the tensors that the model returned.
    """

    tokens: Tensor | None = None
    outputs: list[list[Tensor]] = field(default_factory=list)
    end: list[Tensor] = field(default_factory=list)

    def add(self, output: Any) -> None:
        """Keep a copy of what a block returned."""
        self.outputs.append([tensor.detach().clone() for tensor in tensors_in(output)])

    def on_cpu(self) -> "Seen":
        """Return the same with all tensors on the CPU."""
        tokens = None if self.tokens is None else self.tokens.cpu()
        outputs = [[tensor.cpu() for tensor in output] for output in self.outputs]
        return Seen(tokens, outputs, [tensor.cpu() for tensor in self.end])


@dataclass
class BlockRecorder:
    """Records the inputs and outputs of one block's modules, and concludes its stages from them.

    Tensors are kept until then, so that no address is used twice.

    - `mixtures`: the experts of the block, by name. Inputs of their layers are not recorded: a few
      tokens reach some of the experts only.
    - `calls`: layer -> its inputs, one a call; `outputs`: module, input and output of every call.
    """

    layers: list[Layer]
    mixtures: dict[str, Experts] = field(default_factory=dict)
    calls: dict[str, list[Tensor]] = field(default_factory=dict)
    outputs: list[tuple[nn.Module, Tensor | None, Tensor]] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    added: dict[str, nn.Module] = field(default_factory=dict)

    @classmethod
    def of(cls, block: nn.Module, prefix: str) -> "BlockRecorder":
        mixtures = {n: m for n, m in block.named_modules() if isinstance(m, Experts)}
        named = {f"{prefix}.{name}": mixture for name, mixture in mixtures.items()}
        return cls(linear_layers(block, prefix), named)

    def run(self, block: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """Return what the block's own `forward` returns, and find the stages in that run."""
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
        entries = [(layer.name, layer.module) for layer in self.layers]
        entries += [(name, mixture.entry) for name, mixture in self.mixtures.items()]
        hooks: list[Any] = [
            module.register_forward_pre_hook(partial(self.note_call, name), with_kwargs=True)
            for name, module in entries
        ]
        for module in block.modules():
            if module is not block:
                hooks.append(module.register_forward_pre_hook(self.note_input, with_kwargs=True))
                hooks.append(module.register_forward_hook(self.note_made))
        return hooks

    def note_call(self, name: str, _: nn.Module, args: tuple, kwargs: dict) -> None:
        self.calls.setdefault(name, []).append(first_input(args, kwargs))

    def note_input(self, _: nn.Module, args: tuple, kwargs: dict) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        if isinstance(given, Tensor):
            self.inputs.append(given)

    def note_output(self, output: Any) -> None:
        if hidden_of(output) is not None:
            self.inputs.append(hidden_of(output))

    def note_made(self, module: nn.Module, args: tuple, output: Any) -> None:
        given = args[0] if args and isinstance(args[0], Tensor) else None
        if isinstance(hidden_of(output), Tensor):
            self.outputs.append((module, given, hidden_of(output)))

    def conclude(self) -> None:
        """Find the stages and the summands while the weights are loaded; free the tensors."""
        self.stages, self.added = self.found_stages(), self.found_added()
        self.calls, self.outputs, self.inputs = {}, [], []

    def found_added(self) -> dict[str, nn.Module]:
        """Return the layers whose output, as it is or after an RMS norm, is added to hidden states.

        The sum must equal, bit by bit, the input of some module of the block, or its output.
        """
        experts = self.layers_of_experts
        names = {la.module: la.name for la in self.layers if la.name not in experts}
        maker = {identity(made): names[m] for m, _, made in self.outputs if m in names}
        adders: dict[str, nn.Module] = {}
        hidden = self.inputs[0] if self.inputs else None
        for module, given, made in self.outputs:
            if hidden is None or made.numel() != hidden.numel() or made.dtype != hidden.dtype:
                continue
            # some families flatten batches on the way
            total = hidden + made.reshape(hidden.shape)
            alike = (x for x in self.inputs if x.numel() == total.numel())
            if not any(x.reshape(total.shape).equal(total) for x in alike):
                continue
            hidden = total
            if module in names:
                adders[names[module]] = module
            elif (
                given is not None and identity(given) in maker and is_rms_norm(module, given, made)
            ):
                adders[maker[identity(given)]] = module
        return adders

    def found_stages(self) -> list[Stage]:
        """Return the layers that ran, grouped by their input tensor, in the order they ran.

        The layers of all experts come where the first token entered the mixture.
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


def stages_of_experts(mixture: Experts, name: str) -> Iterator[Stage]:
    """Yield two stages for every expert: the layers that its tokens enter, then its down_proj."""
    names = {module: f"{name}.{inner}" for inner, module in mixture.named_modules()}
    for expert in mixture:
        for modules in (expert.first, [expert.down_proj]):
            layers = [Layer(names[m], m) for m in modules]
            yield Stage(layers, 1, mixture=mixture, expert=expert)


def identity(tensor: Tensor) -> tuple:
    """Return what tells two live tensors apart: their memory and how it is read."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def trace_model(
    model: nn.Module, tokens: Int64[Tensor, "n length"], placement: Placement | None = None
) -> ModelTrace:
    """Run the model on a few tokens and return its blocks and stages.

    Where some layers are reached by none of TRACED_TOKENS, as experts may be, up to MANY_TOKENS are
    run to find their stages. Fused experts of `model` are replaced by `Experts`.

    - `placement`: of the weights; None is in memory and as stored.

    Raises NearplaneError when the model has no blocks, or fails.
    """
    placement = placement or Placement(model)
    few = traced(model, placement.on_device(tokens[:1, :TRACED_TOKENS]), placement)
    if not few.unreached:
        return few
    rows = tokens[:: max(1, len(tokens) * tokens.shape[1] // MANY_TOKENS)]
    many = traced(model, placement.on_device(rows[:, :MANY_TOKENS]), placement)
    return replace(few, stages=many.stages, unreached=many.unreached, added=many.added)


def traced(model: nn.Module, tokens: Int64[Tensor, "n length"], placement: Placement) -> ModelTrace:
    """Run the model on some tokens and return what that shows."""
    split_experts_(model)
    name, blocks = find_blocks(model)
    recorders = [BlockRecorder.of(block, f"{name}.{index}") for index, block in enumerate(blocks)]
    forwards = [block.forward for block in blocks]
    order: list[int] = []
    seen, changed, in_place = Seen(tokens), [], []

    def recorded(index: int, args: tuple, kwargs: dict) -> Any:
        first = index not in order
        order.append(index)
        what = f"{name}.{index} ({type(blocks[index]).__name__})"
        containers, given = Containers(Call(args, kwargs)), list(tensors_in((args, kwargs)))
        check_modes(what)
        versions = [tensor._version for tensor in given]
        with placement.block(index), naming_errors(what):
            run = partial(recorders[index].run, blocks[index]) if first else call
            output = run(forwards[index], args, kwargs)
        changed.append(containers.changed)
        in_place.append(versions != [tensor._version for tensor in given])
        seen.add(output)
        return output

    with placement.outside(), replaced_blocks(blocks, recorded), torch.no_grad():
        with naming_errors(f"the forward pass of {type(model).__name__}"):
            seen.end = list(tensors_in(model(**forward_arguments(model, tokens))))
    if not order:
        raise NearplaneError(f"{type(model).__name__} runs none of its blocks {name} on text")
    unreached = [layer for recorder in recorders for layer in recorder.unreached]
    added = {name: module for recorder in recorders for name, module in recorder.added.items()}
    stages = [recorder.stages for recorder in recorders]
    again = used_again(blocks, order)
    changes = any(changed), any(in_place)
    return ModelTrace(name, blocks, order, stages, unreached, added, again, *changes, seen)


def used_again(blocks: nn.ModuleList, order: list[int]) -> set[nn.Module]:
    """Return the linear layers that share their weight, or whose block is called several times."""
    times = Counter(order)
    places = [
        (module, times[index]) for index, b in enumerate(blocks) for module in linear_modules(b)
    ]
    owners = Counter(id(module.get_parameter("weight")) for module, _ in places)
    return {m for m, called in places if owners[id(m.get_parameter("weight"))] > 1 or called > 1}


def check_modes(block: str) -> None:
    """Raise NearplaneError where a pass that pauses would leave a mode of torch switched on."""
    found = torch.accelerator.current_accelerator()
    kinds = ["cpu"] if found is None else ["cpu", found.type]
    mode = "torch.autocast" if any(map(torch.is_autocast_enabled, kinds)) else ""
    mode = "torch.inference_mode" if torch.is_inference_mode_enabled() else mode
    if mode:
        raise NearplaneError(
            f"the model runs {block} under {mode}, which its blocks cannot be taken out of: remove "
            "it from the model's code"
        )


def call(forward: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Return what a function returns."""
    return forward(*args, **kwargs)

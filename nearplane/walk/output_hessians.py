"""How much a model's predictions depend on each output of a layer, by backward passes.

The model draws its own next tokens, and the gradients of their negative log-probability are taken
with respect to the outputs of layers: their second moment is one factor of the Fisher information
of the layer's weight, the Hessian of its inputs is the other [Martens15, Tseng25].
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from nearplane.model.blocks import Layer
from nearplane.model.forward_arguments import logits_of
from nearplane.types import NearplaneError, Progress, first_line, no_progress
from nearplane.walk.capture import Call, tensors_in
from nearplane.walk.forward_pass import ForwardPass, Passes
from nearplane.walk.hessian import HessianSum
from nearplane.walk.hidden_states import CPU, HiddenStates, Spilled
from nearplane.walk.placement import Placement
from nearplane.walk.ranks import ALONE, Ranks
from nearplane.walk.trace import ModelTrace

TOKENS = 8192  # whose gradients are taken
MOST_LOGITS = 1 << 26  # of a sequence whose loss is taken
MOST_ROWS = 2048  # of a diagonal block: outputs of different blocks do not make up for each other
LARGEST = 8.0  # gradients of a token are scaled down to so many times the median's square

Sums = dict[str, list[HessianSum]]  # layer -> those of the diagonal blocks of its output Hessian


@dataclass
class OutputHessians:
    """The output Hessians of some layers, in memory or in a file.

    - `places`: layer -> the numbers of the diagonal blocks of its Hessian among `states`.
    - `problem`: why there are none; empty if there are.
    """

    states: HiddenStates
    places: dict[str, list[int]] = field(default_factory=dict)
    problem: str = ""

    def of(self, layer: Layer) -> list[Float32[Tensor, "some some"]]:
        """Return the diagonal blocks of the mean of g gᵀ, in units of its mean diagonal.

        Nothing for a layer that has no output Hessian.
        """
        return [self.states[place] for place in self.places.get(layer.name, [])]

    def keep(self, name: str, blocks: list[Float32[Tensor, "some some"]]) -> None:
        """Keep the diagonal blocks of a layer's output Hessian, if none of them is zero."""
        traces = torch.stack([block.diagonal().sum() for block in blocks])
        if torch.isfinite(traces).all() and (traces > 0).all():
            size = traces.sum() / sum(map(len, blocks))
            self.places[name] = list(range(len(self.states), len(self.states) + len(blocks)))
            for block in blocks:
                self.states.append(block / size)


def blocks_of(rows: int) -> list[slice]:
    """Return the rows of each diagonal block: as few and as equal as MOST_ROWS allows."""
    count = -(-rows // MOST_ROWS)
    ends = [rows * number // count for number in range(count + 1)]
    return [slice(*pair) for pair in pairwise(ends)]


@dataclass
class BackwardPasses:
    """Runs a model forwards and, block by block, backwards.

    Only what blocks return is kept between the two; a block is run again before its gradients.

    - `wanted`: the layers to weigh the outputs of; experts of mixtures are none of them.
    """

    placement: Placement
    trace: ModelTrace
    tokens: Int64[Tensor, "n length"]
    wanted: list[Layer]
    head: Any = None
    ranks: Ranks = ALONE
    progress: Progress = no_progress

    def output_hessians(self) -> OutputHessians:
        """Return the output Hessians; none, and why, for a model without gradients."""
        found = OutputHessians(self.placement.hidden_states())
        if self.trace.changes_arguments or self.trace.changes_in_place:
            name = type(self.placement.model).__name__
            found.problem = f"the blocks of {name} change what they are given"
            return found
        try:
            with self.placement.outside(), frozen(self.placement.model):
                self.run(found)
        except torch.OutOfMemoryError:
            raise
        except (NearplaneError, RuntimeError, NotImplementedError, TypeError) as error:
            name = type(self.placement.model).__name__
            found.places, found.problem = {}, f"{name} has no gradients ({first_line(error)})"
        return found

    def run(self, found: OutputHessians) -> None:
        """Run all passes forwards and backwards; keeps what every block's layers give."""
        some = self.tokens[: max(1, TOKENS // self.tokens.shape[1])]
        rank, size = self.ranks.rank, self.ranks.size
        # there may be more processes than sequences
        own = some[rank::size] if len(some) < size else self.ranks.share(some)
        passes = [
            TapedPass(
                ForwardPass(
                    self.placement.model, self.trace, self.placement.on_device(part), self.head
                )
            )
            for part in own.split(1)
            if len(part)
        ]
        count, order = len(self.trace.order), self.trace.order
        with closing(Passes([each.forward for each in passes])):
            for each in passes:
                each.begin()
            with closing(self.placement.in_order(order)) as blocks:
                for call, index in enumerate(blocks):
                    # the graph behind a tensor keeps its device
                    elsewhere = self.placement.device != CPU
                    states = None if elsewhere else self.placement.spilled_states()
                    for each in passes:
                        each.run_block(self.trace.blocks[index], index, states)
                    self.progress("taking gradients", (call + 1) / count / 3)
            draws = torch.Generator().manual_seed(0)
            for each in passes:
                each.take_loss(draws)
            sums: Sums = {}
            with closing(self.placement.in_order(order[::-1])) as blocks:
                for call, index in zip(reversed(range(count)), blocks, strict=True):
                    layers = self.layers_of(index)
                    with summed(layers, sums, self.placement.device):
                        for each in passes:
                            each.run_back(self.trace.blocks[index])
                    for layer in layers if order.index(index) == call else ():
                        self.add_up(found, layer, sums.pop(layer.name, None))
                    self.progress("taking gradients", 1 - call / count * 2 / 3)

    def layers_of(self, index: int) -> list[Layer]:
        """Return the layers of a block whose outputs are to be weighed."""
        stages = (stage for stage in self.trace.stages[index] if stage.mixture is None)
        layers, wanted = (la for stage in stages for la in stage.layers), set(self.wanted)
        return [layer for layer in layers if layer in wanted]

    def add_up(self, found: OutputHessians, layer: Layer, own: list[HessianSum] | None) -> None:
        """Keep the sums over all processes."""
        own = own or begun(layer, self.placement.device)
        for total in own:
            total.add_up(self.ranks)
        found.keep(layer.name, [total.mean() for total in own])


class TapedPass:
    """A forward pass that keeps, for every call of a block, what is needed to go back.

    - `calls`: of the blocks, with the tensors that they were given and those that they returned.
    """

    def __init__(self, forward: ForwardPass):
        self.forward = forward
        forward.grad = True
        self.calls: list[tuple[Call, list[Tensor]]] = []

    def begin(self) -> None:
        self.forward.go_on()

    def run_block(self, block: Any, index: int, states: Spilled | None) -> None:
        """Run a block without gradients; what it returned begins a new piece of the graph."""
        call = self.forward.expect(index)
        with torch.no_grad():
            output = call.run(block)
        output = mapped(output, leaf)
        self.calls.append((call, [t for t in tensors_in(output) if t.requires_grad]))
        self.forward.go_on(output)
        self.forward.keep_in(states, output)

    def take_loss(self, draws: torch.Generator) -> None:
        """Take the gradients of −log p of next tokens that the model draws, up to the last block.

        Of MOST_LOGITS logits at most, those of positions that are evenly spaced.
        """
        forward = self.forward
        if forward.inputs is not None:
            head = forward.head
            words = 1 if head is None else head.get_parameter("weight").shape[0]
            forward.finish(words, MOST_LOGITS)
        logits = logits_of(forward.result)
        share = torch.softmax(logits.detach().float(), -1)
        drawn = torch.multinomial(share.flatten(0, -2).cpu(), 1, generator=draws).to(share.device)
        share.flatten(0, -2).scatter_add_(1, drawn, torch.full_like(drawn, -1, dtype=share.dtype))
        logits.backward(share.to(logits.dtype))
        forward.result = None

    def run_back(self, block: Any) -> None:
        """Run the latest block that is left again, and hand its gradients on to what is before."""
        call, outputs = self.calls.pop()
        slopes = [tensor.grad for tensor in outputs]
        if all(slope is None for slope in slopes):
            return
        pairs: list[tuple[Tensor, Tensor]] = []
        hidden = call.hidden

        def fresh(tensor: Tensor) -> Tensor:
            if not (tensor.requires_grad or tensor is hidden):
                return tensor
            twin = tensor.detach().requires_grad_()
            if tensor.requires_grad:
                pairs.append((tensor, twin))
            return twin

        again = Call(mapped(call.args, fresh), mapped(call.kwargs, fresh), call.name)
        with torch.enable_grad():
            made = [t for t in tensors_in(again.run(block)) if t.is_floating_point()]
        known = [
            (tensor, slope)
            for tensor, slope in zip(made, slopes, strict=True)
            if slope is not None and tensor.requires_grad
        ]
        go_back(known)
        go_back([(tensor, twin.grad) for tensor, twin in pairs if twin.grad is not None])


def go_back(slopes: list[tuple[Tensor, Any]]) -> None:
    """Take gradients through the graph behind some tensors, given the slopes at these."""
    if slopes:
        tensors, given = zip(*slopes, strict=True)
        torch.autograd.backward(list(tensors), list(given))


def leaf(tensor: Tensor) -> Tensor:
    """Return a tensor at which gradients are kept; as it is if it holds integers."""
    return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return nested tuples, lists and dictionaries with their tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(part, change) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(mapped(part, change) for part in value)
    if type(value) is dict:
        return {name: mapped(part, change) for name, part in value.items()}
    return value


def begun(layer: Layer, device: torch.device) -> list[HessianSum]:
    """Return empty sums, one a diagonal block of a layer's output Hessian."""
    return [HessianSum(rows.stop - rows.start, device) for rows in blocks_of(layer.shape[0])]


@contextmanager
def summed(layers: Sequence[Layer], sums: Sums, device: torch.device) -> Iterator[None]:
    """Add up the gradients of the layers' outputs that are taken inside a `with` block."""

    def watch(layer: Layer, output: Any) -> None:
        def add(slope: Tensor) -> None:
            slopes = clipped(slope.detach().flatten(0, -2).float())
            totals = sums.setdefault(layer.name, begun(layer, device))
            for total, rows in zip(totals, blocks_of(layer.shape[0]), strict=True):
                total.add(slopes[:, rows])

        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(add)

    with ExitStack() as stack:
        for layer in layers:
            hook = layer.module.register_forward_hook(
                lambda module, args, output, layer=layer: watch(layer, output)
            )
            stack.callback(hook.remove)
        yield


def clipped(slopes: Float32[Tensor, "tokens rows"]) -> Float32[Tensor, "tokens rows"]:
    """Return gradients of which none is longer than √LARGEST times the median one.

    A few tokens have gradients that are a thousand times longer; their directions say nothing of
    the others'.
    """
    size = slopes.square().sum(1, keepdim=True)
    known = size[torch.isfinite(size)]
    if not known.numel():
        return slopes
    most = known.median() * LARGEST
    return slopes * (most / size.clamp_min(1e-37)).sqrt().clamp_max(1)


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Take no gradients with respect to a model's own parameters inside a `with` block."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)

"""Before a layer is rounded: passes that pause at blocks compute what the model itself does.

A block that keeps a state of its own between calls, or whose arguments are not all that it depends
on, would give other hidden states in a walk than in the model.
"""

from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from nearplane.lattice.float64 import widened
from nearplane.model.blocks import Layer
from nearplane.model.forward_arguments import forward_arguments
from nearplane.model.output_head import EMBEDDING, head_of, shares_weight
from nearplane.model.selection import is_embedding
from nearplane.types import NearplaneError, first_line
from nearplane.walk.capture import replaced_blocks, tensors_in
from nearplane.walk.expert_hessians import BlockExperts
from nearplane.walk.forward_pass import ForwardPass, Passes, begin
from nearplane.walk.placement import Placement
from nearplane.walk.streams import Streams
from nearplane.walk.trace import ModelTrace, Seen

# The same operations on the same numbers in the same order: equal on processors, where nothing
# depends on the order in which threads finish. Accelerators add in any order: a few last digits.
DIGITS = 4  # of the type's relative precision
LEAST = 1e-5


def check_forward_passes(
    trace: ModelTrace,
    tokens: Int64[Tensor, "n length"],
    placement: Placement,
    visit: Callable[[int], None] = lambda index: None,
) -> None:
    """Run two streams through the blocks, nothing rounded, and compare one with the trace.

    The other runs on other tokens, so that a state in common would be seen. Frees the blocks'
    outputs in `trace.seen`.

    - `visit`: called with the index of every block while its weights are in memory.

    Raises NearplaneError naming the first block whose output differs from the model's own.
    """
    with closing(begun(trace, tokens, placement)) as passes:
        visited: set[int] = set()
        with closing(placement.in_order(trace.order)) as blocks:
            for number, index in enumerate(blocks):
                again = index in visited
                visited.add(index)
                if not again:
                    visit(index)
                outputs = run_block(trace, index, passes, placement, [] if again else None)
                compare(outputs[1], trace.seen.outputs[number], trace.name_of(index))
                passes.hand_on(iter(outputs), placement)
        for index in set(range(len(trace.blocks))) - visited:
            with placement.block(index):
                visit(index)
        compare(passes.original[0].result, trace.seen.end, type(placement.model).__name__)
        trace.seen.outputs = []


def begun(trace: ModelTrace, tokens: Int64[Tensor, "n length"], placement: Placement) -> Passes:
    """Return one pass on other tokens than the traced ones and one on these, at the first block."""
    first = trace.seen.tokens
    assert first is not None
    other = placement.on_device(tokens[-1:, -first.shape[1] :])
    other = other.flip(1) if other.equal(first) else other
    model = placement.model
    pair = [ForwardPass(model, trace, t) for t in (other, first)]
    with placement.outside():
        begin(pair)
    return Passes(pair[:1], pair[1:])


def run_block(
    trace: ModelTrace, index: int, passes: Passes, placement: Placement, stages: list | None
) -> list[Any]:
    """Return what a block returns to both passes, having paused at its stages as the walk does."""
    stages = trace.stages[index] if stages is None else stages
    calls, original = (
        [partial(each.expect, index) for each in stream]
        for stream in (passes.quantized, passes.original)
    )
    streams = Streams.of(trace, index, stages, calls, original, placement.limits.paused)
    experts = BlockExperts(streams)
    for stage in stages:
        experts.tokens_of(stage)
        deque(streams.given(stage), maxlen=0)
    return list(streams.finish())


def compare(found: Any, expected: list[Tensor], name: str) -> None:
    """Raise NearplaneError if the tensors that `name` returned are not the expected ones."""
    tensors = list(tensors_in(found))
    if [t.shape for t in tensors] != [t.shape for t in expected]:
        raise NearplaneError(
            f"{name} returns other tensors when the model is run block by block than in its own "
            "forward pass: this model cannot be quantized"
        )
    for tensor, own in zip(tensors, expected, strict=True):
        off = relative_difference(tensor, own)
        if off > tolerance(own.dtype):
            raise NearplaneError(
                f"{name} computes something else when the model is run block by block than in its "
                f"own forward pass (off by {off:.1e} of the hidden states' norm): it depends on "
                "more than its arguments, so that this model cannot be quantized"
            )


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return ‖found − expected‖ / ‖expected‖; NaN and infinity count as zero."""
    found, expected = (widened(t.detach()).nan_to_num(0, 0, 0) for t in (found, expected))
    size = float(expected.norm())
    return float((found - expected).norm()) / (size or 1.0)


def tolerance(dtype: torch.dtype) -> float:
    """Return the largest relative difference of two computations of the same."""
    return max(DIGITS * torch.finfo(dtype).eps, LEAST) if dtype.is_floating_point else 0.0


class StandIn(nn.Module):
    """What a compressed layer is to a model's code: no nn.Linear, with a weight to read only.

    Nor is it an nn.Embedding where it stands in for one.
    """

    def __init__(self, replaced: Any):
        super().__init__()
        self.replaced = replaced
        rows, columns = Layer("", replaced).shape
        self.in_features, self.out_features = columns, rows
        self.num_embeddings, self.embedding_dim = rows, columns
        self.padding_idx = getattr(replaced, "padding_idx", None)
        self.register_parameter("bias", getattr(replaced, "bias", None))

    @property
    def weight(self) -> Tensor:
        return self.replaced.weight.detach()

    def forward(self, input: Tensor) -> Tensor:
        return self.replaced(input)


def check_replaceable(
    model: nn.Module, trace: ModelTrace, layers: list[Layer], placement: Placement
) -> None:
    """Run the model with stand-ins for the compressed layers, so that no work is done in vain.

    Raises NearplaneError naming the first layer that the model needs as it is.
    """
    problem = problem_without(model, trace, layers, placement)
    if not problem:
        return
    for layer in layers:
        if problem_without(model, trace, [layer], placement):
            kind, option = "a linear layer", "--skip"
            if is_embedding(layer):
                kind, option = "a table to look tokens up in", f"--keep {EMBEDDING}"
            raise NearplaneError(
                f"{type(model).__name__} uses {layer.name} otherwise than as {kind} "
                f"({problem}): leave it as it is with {option}"
            )
    raise NearplaneError(f"{type(model).__name__} does not run with compressed layers: {problem}")


def problem_without(
    model: nn.Module, trace: ModelTrace, layers: list[Layer], placement: Placement
) -> str:
    """Return what is wrong when stand-ins are in the place of some layers; "" if nothing is."""
    head, wanted = head_of(model), {layer.module for layer in layers}
    if head is not None and any(map(partial(shares_weight, head=head), wanted)):
        wanted.add(head)
    named = [(n, m) for n, m in model.named_modules(remove_duplicate=False) if m in wanted]
    stand_ins = {module: StandIn(module) for module in wanted}
    forwards, tokens = [block.forward for block in trace.blocks], trace.seen.tokens
    assert tokens is not None

    def run(index: int, args: tuple, kwargs: dict) -> Any:
        with placement.block(index):
            return forwards[index](*args, **kwargs)

    try:
        for name, module in named:
            model.set_submodule(name, stand_ins[module])
        with placement.outside(), replaced_blocks(trace.blocks, run), torch.no_grad():
            found = list(tensors_in(model(**forward_arguments(model, tokens))))
    except torch.OutOfMemoryError:
        raise
    # a model's code may fail in any way
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    finally:
        for name, module in named:
            model.set_submodule(name, module)
    try:
        compare(found, trace.seen.end, type(model).__name__)
    except NearplaneError:
        return "its results change"
    return ""


@dataclass
class SamplePass:
    """A forward pass on a few tokens that follows the walk, through the blocks as it leaves them.

    A checkpoint that is loaded again must compute the same (`evaluate/loaded_check.py`).

    - `seen`: the tokens, and what the blocks and the model returned.
    """

    trace: ModelTrace
    placement: Placement
    head: nn.Module | None
    seen: Seen = field(default_factory=Seen)

    def __post_init__(self) -> None:
        tokens = self.trace.seen.tokens
        assert tokens is not None
        self.seen.tokens = tokens
        model = self.placement.model
        self.forward = ForwardPass(model, self.trace, tokens, self.head)
        with self.placement.outside():
            self.forward.go_on()

    def follow(self, index: int) -> None:
        """Run through a block, whose weights are in memory, and go on to the next."""
        output = self.forward.expect(index).run(self.trace.blocks[index])
        self.seen.add(output)
        with self.forward.going_on(self.placement):
            self.forward.go_on(output)

    def finish(self) -> None:
        """Run to the model's end, through the head as it is now."""
        if self.forward.inputs is not None:
            with self.placement.outside():
                self.forward.go_on()
        self.seen.end = [t.detach().clone() for t in tensors_in(self.forward.result)]
        self.forward.close()

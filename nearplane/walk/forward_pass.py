"""A model's own forward pass that pauses at its blocks, so that its own code runs between them.

What one block hands to another besides hidden states, through its output, a dictionary or another
object, goes where the model would have it go: every pass has arguments of its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from jaxtyping import Int64
from torch import Tensor, nn

from nearplane.model.forward_arguments import first_input, forward_arguments
from nearplane.types import NearplaneError, naming_errors
from nearplane.walk.capture import Call, hidden_of, replaced_blocks
from nearplane.walk.hidden_states import Spilled
from nearplane.walk.placement import Placement
from nearplane.walk.trace import ModelTrace


class ForwardPass:
    """The forward pass of one batch. It begins, and goes on, whenever `go_on` is called.

    - `head`: a module in front of which it pauses after the last block; None for no such pause.
    - `index`: the block in front of which it is paused, None elsewhere. `call`: its arguments.
    - `paused`: how many times it has paused at a block.
    - `inputs`: of the head, once it is reached. `result`: what the model returns, once it has.
    - `grad`: whether the model's own code records what gradients need.
    """

    def __init__(
        self,
        model: nn.Module,
        trace: ModelTrace,
        tokens: Int64[Tensor, "n length"],
        head: nn.Module | None = None,
    ):
        self.model, self.trace, self.tokens, self.head = model, trace, tokens, head
        self.index: int | None = None
        self.paused = 0
        self.call = Call((), {})
        self.inputs: Tensor | None = None
        self.result: Any = None
        self.grad = False
        self.greenlet: Any = greenlet(self.run)

    def run(self, _: Any = None) -> None:
        self.result = self.model(**forward_arguments(self.model, self.tokens))
        self.index = None

    def pause(self, index: int, args: tuple, kwargs: dict) -> Any:
        self.index, self.call = index, Call(args, kwargs, self.trace.name_of(index))
        self.paused += 1
        return self.greenlet.parent.switch()

    def pause_at_head(self, _: nn.Module, args: tuple, kwargs: dict | None = None) -> Any:
        if getcurrent() is not self.greenlet:
            return None
        self.index, self.call, self.inputs = None, Call((), {}), first_input(args, kwargs)
        given = self.greenlet.parent.switch()
        moved = self.head_inputs()  # they may have been kept elsewhere meanwhile
        if given is None and moved is not self.inputs:
            given = (moved,)
        return None if given is None else (given, {})

    def go_on(self, given: Any = None) -> None:
        """Run the model's code to the next block, or to the head, or to the end.

        - `given`: the output of the block that it is paused at; at the head, its arguments.

        Raises NearplaneError if the model's code raises an error.
        """
        behind = "" if self.index is None else f" behind {self.call.name}"
        what = f"the forward pass of {type(self.model).__name__}{behind}"
        head = self.head
        hook = self.pause_at_head
        hook = None if head is None else head.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            with (
                replaced_blocks(self.trace.blocks, self.pause),
                torch.set_grad_enabled(self.grad),
                naming_errors(what),
            ):
                self.greenlet.switch(given)
        finally:
            if hook is not None:
                hook.remove()

    def going_on(self, placement: Placement) -> AbstractContextManager[None]:
        """Convert what is in front of the next block, or the model's end, inside a `with` block."""
        at_last = self.paused == len(self.trace.order)
        return placement.outside() if at_last else placement.between()

    def expect(self, index: int) -> Call:
        """Return the arguments of block `index`; NearplaneError if it is paused elsewhere.

        They are copies where blocks change tensors that they are given.
        """
        if self.index != index:
            where = "none" if self.index is None else self.call.name
            raise NearplaneError(
                f"{type(self.model).__name__} goes on with {where} where it ran "
                f"{self.trace.name_of(index)} before: the order of its blocks depends on the text"
            )
        call = self.call.on(self.tokens.device)
        return call.copied() if self.trace.changes_in_place else call

    def head_inputs(self) -> Tensor:
        """Return the inputs of the head; NearplaneError if the model does not reach it."""
        if self.inputs is None:
            name = type(self.model).__name__
            raise NearplaneError(f"{name} does not call its output head behind its blocks")
        return self.inputs.to(self.tokens.device)

    def finish(self, words: int, most: int) -> None:
        """Run a pass that is paused at the head to its end, for at most `most` logits.

        Their positions are evenly spaced, and all of them where the head is not given one row a
        token of each sequence.

        - `words`: logits of a position.
        """
        inputs = self.head_inputs()
        if inputs.ndim == 3 and inputs.shape[:2] == self.tokens.shape:
            apart = -(-inputs.shape[:2].numel() * words // most)
            apart = min(max(1, apart), inputs.shape[1])
            self.go_on((inputs[:, apart - 1 :: apart].contiguous(),))
        else:
            self.go_on()

    def share_memory_(self, other: "ForwardPass") -> None:
        """Keep arguments only once that hold the same numbers in both passes, such as masks."""
        share_memory_((self.call.args, self.call.kwargs), (other.call.args, other.call.kwargs))

    def keep_in(self, states: Spilled | None, output: Any = None) -> None:
        """Keep hidden states, of a block's output and of the next call, where `states` keeps them.

        The tensors themselves are kept there: the model's code holds them, too, while it waits.

        - `states`: None leaves them where they are.
        """
        if states is None:
            return
        own = hidden_of(output), self.call.hidden, self.inputs
        for tensor in {id(t): t for t in own if isinstance(t, Tensor) and t.numel()}.values():
            states.append(tensor)
            tensor.data = states.kept(len(states) - 1)

    def close(self) -> None:
        """End the pass, and free what it holds."""
        if self.greenlet:
            with torch.no_grad():
                self.greenlet.throw()
        self.greenlet = None
        self.call = Call((), {})
        # logits of many passes are large
        self.inputs = self.result = None


@dataclass
class Passes:
    """The forward passes of all batches, of the quantized and of the original stream.

    - `original`: empty where only one stream is run.
    """

    quantized: list[ForwardPass]
    original: list[ForwardPass] = field(default_factory=list)

    def hand_on(self, outputs: Iterator[Any], placement: Placement, last: bool = False) -> None:
        """Give every pass the output of the block that it is paused at, and run it to the next.

        - `outputs`: of the passes, quantized ones first. `last`: the passes are not run further.
        """
        kept = [placement.spilled_states() for _ in range(2)]
        streams = ((self.quantized, kept[0]), (self.original, kept[1]))
        with self.quantized[0].going_on(placement):
            for each, states in ((each, states) for passes, states in streams for each in passes):
                output = next(outputs)
                if last:
                    each.close()
                    continue
                each.go_on(output)
                each.share_memory_(self.quantized[0])
                each.keep_in(states, output)
                del output

    def close(self) -> None:
        """End all passes."""
        for each in (*self.quantized, *self.original):
            each.close()


def begin(passes: Sequence[ForwardPass]) -> None:
    """Run passes up to their first block, and keep what they have in common only once."""
    for each in passes:
        each.go_on()
        each.share_memory_(passes[0])


def run_through(passes: Sequence[ForwardPass], placement: Placement) -> None:
    """Run passes of one model, paused at the first block, through all blocks as they are."""
    trace = passes[0].trace
    with closing(placement.in_order(trace.order)) as blocks:
        for index in blocks:
            for each in passes:
                each.go_on(each.expect(index).run(trace.blocks[index]))


def share_memory_(value: Any, other: Any) -> None:
    """Let tensors in `value` use the memory of those in `other` that hold the same numbers."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        alike = value.dtype == other.dtype and value.shape == other.shape
        alike = alike and value.device == other.device
        if alike and value.data_ptr() != other.data_ptr() and value.equal(other):
            value.data = other.data
    elif type(value) is type(other) and isinstance(value, dict):
        for name in value.keys() & other.keys():
            share_memory_(value[name], other[name])
    elif type(value) is type(other) and isinstance(value, tuple | list):
        for part, twin in zip(value, other, strict=False):
            share_memory_(part, twin)

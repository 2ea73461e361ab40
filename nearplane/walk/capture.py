"""Run a model's blocks one at a time, and pause in front of layers to read their inputs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from jaxtyping import Int64
from torch import Tensor, nn

from nearplane.types import NearplaneError


class Stop(Exception):
    """Ends a forward pass once the tensor that it was run for is known."""


@dataclass(frozen=True)
class Call:
    """The arguments of one block for one batch of sequences."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on(self, hidden: Tensor) -> "Call":
        """Return the same call with other hidden states."""
        if self.args:
            return replace(self, args=(hidden, *self.args[1:]))
        return replace(self, kwargs=self.kwargs | {"hidden_states": hidden})

    def without_hidden(self) -> "Call":
        """Return the same call with an empty tensor in the place of its hidden states."""
        return self.on(self.hidden.new_empty(0))

    def sharing(self, other: "Call") -> "Call":
        """Return the same call with the tensors of `other` where they hold the same numbers."""
        return Call(shared(self.args, other.args), shared(self.kwargs, other.kwargs))

    @property
    def hidden(self) -> Tensor:
        return self.args[0] if self.args else self.kwargs["hidden_states"]

    def run(self, block: nn.Module) -> Tensor:
        """Return the block's hidden states."""
        return hidden_of(block(*self.args, **self.kwargs))


def shared(value: Any, other: Any) -> Any:
    """Return `value` with tensors of `other` in it where they hold the same numbers."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        same = value.dtype == other.dtype and value.shape == other.shape and value.equal(other)
        return other if same else value
    if type(value) is not type(other):
        return value
    if type(value) is dict:
        return {name: shared(part, other.get(name)) for name, part in value.items()}
    if type(value) in (tuple, list) and len(value) == len(other):
        return type(value)(map(shared, value, other))
    return value


def hidden_of(output: Any) -> Tensor:
    """Return the hidden states of a block's output, which may be a tuple that starts with them."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace a module's forward by another function inside a `with` block.

    A forward that the instance had, as accelerate's hooks set one, is restored.
    """
    instance_forward = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if instance_forward is not None:
            module.__dict__["forward"] = instance_forward


@contextmanager
def replaced_blocks(
    blocks: nn.ModuleList, forward: Callable[[int, tuple, dict], Any]
) -> Iterator[None]:
    """Replace every block's forward by `forward(index, args, kwargs)` inside a `with` block."""
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            replacement = lambda *a, index=index, **k: forward(index, a, k)  # noqa: E731
            stack.enter_context(replaced_forward(block, replacement))
        yield


def calls_of_blocks(
    model: nn.Module, blocks: nn.ModuleList, tuples: list[bool], tokens: Int64[Tensor, "n length"]
) -> list[Call]:
    """Return the call of every block for one batch, by the model's own forward pass.

    Blocks are replaced by the identity, so this takes no longer than the embedding. The other
    arguments, masks and positions, do not depend on hidden states. All calls but the first have
    an empty tensor in place of hidden states.

    - `tuples`: which blocks return a tuple that starts with the hidden states.
    """
    calls: list[Call] = []

    def record(index: int, args: tuple, kwargs: dict) -> Any:
        call = Call(args, kwargs)
        calls.append(call if index == 0 else call.without_hidden())
        if index == len(blocks) - 1:
            raise Stop
        return (call.hidden,) if tuples[index] else call.hidden

    with replaced_blocks(blocks, record), torch.no_grad():
        try:
            model(input_ids=tokens, use_cache=False)
        except Stop:
            pass
    if len(calls) != len(blocks):
        raise NearplaneError(
            f"the model ran {len(calls)} of its {len(blocks)} blocks: "
            "it does not walk them in order"
        )
    return calls


class PausedRun:
    """One forward pass of a block that pauses in front of chosen layers.

    The walk reads a stage's inputs, quantizes its layers, and continues the pass with their new
    outputs. So every product is computed once; a new pass for each stage would compute the block
    about twice. Runs are greenlets instead of threads, so that they share one pool of torch's
    workers.

    - `stops`: layers to pause at, each when it is first called.
    - `added`: modules whose output the block adds to its hidden states. `residual` is the hidden
      states to which the next of them is added.
    - `before`: layer -> its weight before it was quantized, with which it runs here; None if it is
      not quantized yet.
    """

    def __init__(
        self,
        block: nn.Module,
        stops: list[nn.Module],
        call: Call,
        added: Sequence[nn.Module] = (),
        before: dict[nn.Module, Tensor | None] | None = None,
    ):
        self.block, self.call = block, call
        self.remaining, self.added = set(stops), added
        self.before = before or {}
        self.current_weight: Tensor | None = (
            None  # the quantized weight, while one of `before` replaces it
        )
        self.args: tuple = ()  # of the layer that it stopped at last
        self.residual = call.hidden
        self.greenlet: Any = greenlet(self.run)  # None once the run has ended
        self.reached: tuple[nn.Module | None, Tensor] | None = None  # None and the end's output

    def run(self) -> tuple[None, Tensor]:
        hooks = [stop.register_forward_pre_hook(self.pause) for stop in list(self.remaining)]
        hooks += [layer.register_forward_hook(self.add) for layer in self.added]
        hooks += [layer.register_forward_pre_hook(self.put_before) for layer in self.before]
        hooks += [layer.register_forward_hook(self.put_back) for layer in self.before]
        try:
            return None, self.call.run(self.block)
        finally:
            for hook in hooks:
                hook.remove()

    def pause(self, layer: nn.Module, args: tuple) -> None:
        # the hooks of every run hang on the same layers; only the current run has reached one
        if layer in self.remaining and getcurrent() is self.greenlet:
            self.remaining.remove(layer)
            self.args = args
            self.greenlet.parent.switch((layer, args[0]))

    def add(self, _: nn.Module, args: tuple, output: Tensor) -> None:
        # as in `pause`: hooks of other runs hang on the same layer
        if getcurrent() is self.greenlet:
            self.residual = self.residual + output.reshape(self.residual.shape)

    def put_before(self, layer: nn.Module, _: tuple) -> None:
        before, weight = self.before[layer], layer.get_parameter("weight")
        if before is not None and getcurrent() is self.greenlet:
            self.current_weight, weight.data = weight.data, before

    def put_back(self, layer: nn.Module, _: tuple, output: Tensor) -> None:
        if self.current_weight is not None and getcurrent() is self.greenlet:
            layer.get_parameter("weight").data = self.current_weight
            self.current_weight = None

    def go_on(self) -> tuple[nn.Module | None, Tensor]:
        """Run to the next pause; returns the layer and its input, or None and the block's output.

        At a pause whose input was not taken by `to`, it returns the same again.
        """
        if self.reached is None:
            with torch.no_grad():
                self.reached = self.greenlet.switch()
        assert self.reached is not None
        return self.reached

    def to(self, layer: nn.Module) -> Tensor | None:
        """Return the input of `layer`, the next to pause at; None if this run does not reach it."""
        stop, inputs = self.go_on()
        if stop is not layer:
            return None
        self.reached = None
        return inputs

    def finish(self) -> Tensor:
        """Run to the end and return the block's hidden states."""
        stop, hidden = self.go_on()
        # the run and its greenlet refer to each other, which would keep both in memory
        self.greenlet = self.reached = None
        self.residual = hidden
        if stop is not None:
            raise NearplaneError("the model ran its layers in another order than before")
        return hidden

    def rest(self) -> None:
        """Stay paused until the next stage is asked for; a `RepeatedRun` frees its memory."""

    def pass_by(self) -> None:
        """Skip the next pause."""
        self.go_on()
        self.reached = None

    def close(self) -> None:
        """End the run before the block's end, and free what it holds."""
        if self.greenlet is not None:
            with torch.no_grad():
                self.greenlet.throw()
        self.greenlet = self.reached = None


class RepeatedRun:
    """A forward pass that frees its memory between stages, and starts anew for each stage.

    Its results are those of a `PausedRun` if the layers that it has passed still compute the same.

    - `start`: returns a paused run that has not begun.
    """

    def __init__(self, start: Callable[[], PausedRun]):
        self.start = start
        self.passed = 0
        self.under_way: PausedRun | None = None

    @property
    def current(self) -> PausedRun:
        """The paused run; a new one is run up to the last pause that was passed."""
        if self.under_way is None:
            self.under_way = self.start()
            for _ in range(self.passed):
                self.under_way.go_on()
                self.under_way.reached = None
        return self.under_way

    @property
    def call(self) -> Call:
        return self.current.call

    @property
    def args(self) -> tuple:
        return self.current.args

    @property
    def residual(self) -> Tensor:
        return self.current.residual

    def pass_by(self) -> None:
        """Skip the next pause, without running up to it."""
        self.passed += 1

    def to(self, layer: nn.Module) -> Tensor | None:
        """Return the input of `layer`, the next to pause at; None if this run does not reach it."""
        inputs = self.current.to(layer)
        self.passed += inputs is not None
        return inputs

    def go_on(self) -> None:
        """Do nothing: the run continues when its next input is asked for."""

    def finish(self) -> Tensor:
        """Run to the end and return the block's hidden states."""
        hidden = self.current.finish()
        self.under_way = None
        return hidden

    def rest(self) -> None:
        """Free what was computed until the next stage is asked for."""
        if self.under_way is not None:
            self.under_way.close()
        self.under_way = None


def inputs_of(block: nn.Module, layer: nn.Module, times: int, call: Call) -> list[Tensor]:
    """Return the inputs of `layer` when the block runs `call`; the run ends at the last of them.

    - `times`: how often the block calls the layer.
    """
    seen: list[Tensor] = []

    def take(_: nn.Module, args: tuple) -> None:
        seen.append(args[0])
        if len(seen) == times:
            raise Stop

    hook = layer.register_forward_pre_hook(take)
    try:
        with torch.no_grad():
            call.run(block)
    except Stop:
        pass
    finally:
        hook.remove()
    return seen

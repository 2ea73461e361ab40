"""Run a model's blocks one at a time, and pause in front of layers to read their inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from nearplane.model.forward_arguments import first_input
from nearplane.types import NearplaneError, naming_errors

DEEPEST = 6  # objects within objects of a call's arguments that are looked at


class Stop(BaseException):
    """Ends a forward pass once the tensor that it was run for is known."""


@dataclass(frozen=True)
class Call:
    """The arguments of one block for one batch of sequences; `name` is the block's."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str = "a block"

    @property
    def hidden(self) -> Any:
        """The hidden states: the first argument or `hidden_states`, or else the first tensor.

        Integers do not count; None if there is no such tensor.
        """
        named = self.kwargs.get("hidden_states")
        given = [*self.args, *([] if named is None else [named]), *self.kwargs.values()]
        tensors = (v for v in given if isinstance(v, Tensor) and v.is_floating_point())
        return next(tensors, None)

    def on(self, device: torch.device) -> "Call":
        """Return the same call with the tensors that are arguments on a device."""
        given = [*self.args, *self.kwargs.values()]
        if all(part.device == device for part in given if isinstance(part, Tensor)):
            return self
        args = tuple(part.to(device) if isinstance(part, Tensor) else part for part in self.args)
        items = self.kwargs.items()
        kwargs = {n: p.to(device) if isinstance(p, Tensor) else p for n, p in items}
        return Call(args, kwargs, self.name)

    def copied(self) -> "Call":
        """Return the same call with copies of the tensors that are arguments."""
        args = tuple(part.clone() if isinstance(part, Tensor) else part for part in self.args)
        kwargs = {n: p.clone() if isinstance(p, Tensor) else p for n, p in self.kwargs.items()}
        return Call(args, kwargs, self.name)

    def run(self, block: nn.Module) -> Any:
        """Return what the block returns; NearplaneError if its code raises an error."""
        with naming_errors(f"{self.name} ({type(block).__name__})"):
            return block(*self.args, **self.kwargs)


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
        # backwards: of a module that is listed twice, the first place counts
        for index, block in reversed(list(enumerate(blocks))):
            replacement = lambda *a, index=index, **k: forward(index, a, k)  # noqa: E731
            stack.enter_context(replaced_forward(block, replacement))
        yield


def hidden_of(output: Any) -> Any:
    """Return the hidden states of a block's output: its first tensor, or None if it has none."""
    return next(tensors_in(output), None)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists, dictionaries and dataclasses, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for part in fields(value):
            yield from tensors_in(getattr(value, part.name))


class Containers:
    """The dictionaries, lists and other objects among a call's arguments, and what they hold.

    A block may change them. Where it is run again on the same arguments, they are put back first.
    """

    def __init__(self, call: Call):
        self.held: list[tuple[Any, Any]] = []
        self.note((call.args, call.kwargs), set(), 0)

    def note(self, value: Any, seen: set[int], depth: int) -> None:
        plain = value is None or isinstance(value, str | bytes | int | float | Tensor | nn.Module)
        if plain or callable(value) or id(value) in seen or depth > DEEPEST:
            return
        seen.add(id(value))
        if isinstance(value, dict | list):
            self.held.append((value, copy(value)))
        elif not isinstance(value, tuple):
            value = getattr(value, "__dict__", {})
            self.held.append((value, copy(value)))
        for part in list(value.values() if isinstance(value, dict) else value):
            self.note(part, seen, depth + 1)

    @property
    def changed(self) -> bool:
        """Whether one of them holds other objects than before."""
        return any(not same_objects(value, before) for value, before in self.held)

    def restore(self) -> None:
        """Put back what they held."""
        for value, before in self.held:
            if isinstance(value, dict):
                value.clear()
                value.update(before)
            else:
                value[:] = before


def same_objects(value: Any, other: Any) -> bool:
    """Whether two dictionaries, or two lists, hold the same objects."""
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(value[key] is other[key] for key in value)
    return len(value) == len(other) and all(a is b for a, b in zip(value, other, strict=True))


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
        self.residual: Any = call.hidden
        self.containers = Containers(call)
        self.greenlet: Any = greenlet(self.run)  # None once the run has ended
        self.reached: tuple[nn.Module | None, Any] | None = None  # None and the end's output

    def run(self) -> tuple[None, Any]:
        hooks: list[Any] = [
            stop.register_forward_pre_hook(self.pause, with_kwargs=True)
            for stop in list(self.remaining)
        ]
        hooks += [layer.register_forward_hook(self.add) for layer in self.added]
        hooks += [layer.register_forward_pre_hook(self.put_before) for layer in self.before]
        hooks += [layer.register_forward_hook(self.put_back) for layer in self.before]
        try:
            return None, self.call.run(self.block)
        finally:
            for hook in hooks:
                hook.remove()

    def pause(self, layer: nn.Module, args: tuple, kwargs: dict | None = None) -> None:
        # torch calls the hook of a run that has ended meanwhile once more, without the names
        # the hooks of every run hang on the same layers; only the current run has reached one
        if layer in self.remaining and getcurrent() is self.greenlet:
            self.remaining.remove(layer)
            self.args = args
            self.greenlet.parent.switch((layer, first_input(args, kwargs)))

    def add(self, _: nn.Module, args: tuple, output: Tensor) -> None:
        # as in `pause`: hooks of other runs hang on the same layer
        if getcurrent() is self.greenlet and self.residual is not None:
            self.residual = self.residual + output.reshape(self.residual.shape)

    def put_before(self, layer: nn.Module, _: tuple) -> None:
        before, weight = self.before[layer], layer.get_parameter("weight")
        if before is not None and getcurrent() is self.greenlet:
            self.current_weight, weight.data = weight.data, before

    def put_back(self, layer: nn.Module, _: tuple, output: Tensor) -> None:
        if self.current_weight is not None and getcurrent() is self.greenlet:
            layer.get_parameter("weight").data = self.current_weight
            self.current_weight = None

    def go_on(self) -> tuple[nn.Module | None, Any]:
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

    def finish(self) -> Any:
        """Run to the end and return what the block returns."""
        stop, output = self.go_on()
        # the run and its greenlet refer to each other, which would keep both in memory
        self.greenlet = self.reached = None
        # the model's forward pass may free the arguments now
        self.call, self.residual = Call((), {}, self.call.name), None
        del self.containers
        if stop is not None:
            raise NearplaneError(f"{self.call.name} ran its layers in another order than before")
        return output

    def rest(self) -> None:
        """Stay paused until the next stage is asked for; a `RepeatedRun` frees its memory."""

    def pass_by(self) -> None:
        """Skip the next pause."""
        self.go_on()
        self.reached = None

    def close(self) -> None:
        """End the run before the block's end, free what it holds, put its arguments back."""
        if self.greenlet is not None:
            with torch.no_grad():
                self.greenlet.throw()
            self.containers.restore()
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

    def finish(self) -> Any:
        """Run to the end and return what the block returns."""
        output = self.current.finish()
        self.under_way = None
        return output

    def rest(self) -> None:
        """Free what was computed until the next stage is asked for."""
        if self.under_way is not None:
            self.under_way.close()
        self.under_way = None

    def close(self) -> None:
        """End the run before the block's end, and free what it holds."""
        self.rest()


def inputs_of(block: nn.Module, layer: nn.Module, times: int, call: Call) -> list[Tensor]:
    """Return the inputs of `layer` when the block runs `call`; the run ends at the last of them.

    - `times`: how often the block calls the layer.
    """
    seen: list[Tensor] = []

    def take(_: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(first_input(args, kwargs))
        if len(seen) == times:
            raise Stop

    hook = layer.register_forward_pre_hook(take, with_kwargs=True)
    containers = Containers(call)
    try:
        with torch.no_grad():
            call.run(block)
    except Stop:
        pass
    finally:
        hook.remove()
        containers.restore()
    return seen

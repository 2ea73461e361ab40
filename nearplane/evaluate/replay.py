"""The walk again with stored values in the place of rounding: every layer's loss comes out anew."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nearplane import codes, types
from nearplane.export.checkpoint_reader import Checkpoint
from nearplane.walk.blocks import Layer
from nearplane.walk.capture import Call, calls_of_blocks
from nearplane.walk.head import head_inputs, head_of, untie
from nearplane.walk.hessian import HessianSum
from nearplane.walk.observe import Stage, observe
from nearplane.walk.walk import BATCH_TOKENS


def replayed_losses(
    model: nn.Module, tokens: Int64[Tensor, "n length"], checkpoint: Checkpoint
) -> Iterator[tuple[str, float]]:
    """Yield name and loss of every stored layer, and leave the stored values in `model`.

    What a layer is given depends only on the layers before it, and they hold the values that they
    held when it was rounded; so one run of each finished block gives its Hessians.
    """
    plan = observe(model, tokens)
    batches = tokens.split(max(1, BATCH_TOKENS // tokens.shape[1]))
    calls = [calls_of_blocks(model, plan.blocks, plan.tuples, batch) for batch in batches]
    hidden = [call[0].hidden for call in calls]
    for index, block in enumerate(plan.blocks):
        stored = [layers_in(stage, checkpoint) for stage in plan.stages[index]]
        errors = {la.name: put_stored(la, checkpoint) for stage in stored for la in stage}
        now = [call[index].on(h) for call, h in zip(calls, hidden, strict=True)]
        moments, hidden = moments_of(block, [stage for stage in stored if stage], now)
        for stage, moment in moments:
            yield from losses_of(stage, moment, errors)
    head = head_of(model)
    if head.name in checkpoint.layers:
        untie(model, head)
        moment = HessianSum(head.shape[1])
        for batch, states in zip(batches, hidden, strict=True):
            moment.add(head_inputs(model, plan, head, batch, states))
        yield from losses_of([head], moment, {head.name: put_stored(head, checkpoint)})


def losses_of(
    layers: list[Layer], moment: HessianSum, errors: dict[str, Tensor]
) -> Iterator[tuple[str, float]]:
    """Yield name and loss of layers that share their inputs."""
    hessian = moment.mean().double()
    for layer in layers:
        error = errors[layer.name].double()
        yield layer.name, float(((error @ hessian) * error).sum())


def layers_in(stage: Stage, checkpoint: Checkpoint) -> list[Layer]:
    """Return the layers of a stage that the checkpoint stores compressed."""
    return [layer for layer in stage.layers if layer.name in checkpoint.layers]


def put_stored(layer: Layer, checkpoint: Checkpoint) -> Float[Tensor, "rows columns"]:
    """Give the layer its stored value and return weight − value."""
    value = decoded(checkpoint, layer.name)
    error = layer.weight().detach().float() - value
    layer.assign(value)
    return error


def decoded(checkpoint: Checkpoint, name: str) -> Float[Tensor, "rows columns"]:
    """Return the value that a layer's record holds."""
    stored = codes.unpack(checkpoint.record(name))
    return types.value(stored.code, stored.step, stored.group_size, stored.outliers)


def moments_of(
    block: nn.Module, stages: list[list[Layer]], calls: list[Call]
) -> tuple[list[tuple[list[Layer], HessianSum]], list[Tensor]]:
    """Run a block on every call; return each stage's second moment, and the hidden states."""
    moments = [(stage, HessianSum(stage[0].shape[1])) for stage in stages]
    with ExitStack() as hooks, torch.no_grad():
        for stage, moment in moments:
            watch = partial(add_inputs, moment)
            seen = stage[0].module.register_forward_pre_hook(watch)
            hooks.callback(seen.remove)
        hidden = [call.run(block) for call in calls]
    return moments, hidden


def add_inputs(moment: HessianSum, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Add what a layer is given, as a hook before its forward pass."""
    moment.add(args[0])

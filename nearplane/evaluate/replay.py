"""The walk again with stored values in the place of rounding: every layer's loss comes out anew."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nearplane import codes, types
from nearplane.export.checkpoint_reader import Checkpoint
from nearplane.model.blocks import Layer
from nearplane.model.experts import Experts
from nearplane.model.output_head import head_of, untie
from nearplane.walk.capture import Call, calls_of_blocks
from nearplane.walk.expert_hessians import Entered
from nearplane.walk.hessian import HessianSum
from nearplane.walk.input_statistics import Seen
from nearplane.walk.placement import Weights
from nearplane.walk.trace import Stage, head_inputs, observe
from nearplane.walk.walk import BATCH_TOKENS


def replayed_losses(
    model: nn.Module,
    tokens: Int64[Tensor, "n length"],
    checkpoint: Checkpoint,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[str, float]]:
    """Yield name and loss of every stored layer, and leave the stored values in `model`.

    What a layer is given depends only on the layers before it, and they hold the values that they
    held when it was rounded; so one run of each finished block gives its Hessians.

    - `dtype`: that the walk computed in; the model's own if None.
    """
    weights = Weights(model, dtype=dtype)
    plan = observe(model, tokens, weights)
    batches = tokens.split(max(1, BATCH_TOKENS // tokens.shape[1]))
    with weights.outside():
        calls = [calls_of_blocks(model, plan.blocks, plan.tuples, batch) for batch in batches]
    hidden = [call[0].hidden for call in calls]
    for index, block in enumerate(plan.blocks):
        stored = [layers_in(stage, checkpoint) for stage in plan.stages[index]]
        with weights.block(index):
            errors = {
                la.name: put_stored(la, checkpoint, weights) for st in stored for la in st.layers
            }
            now = [call[index].on(h) for call, h in zip(calls, hidden, strict=True)]
            hessians, hidden = hessians_of(block, [stage for stage in stored if stage.layers], now)
            for stage, hessian in hessians:
                yield from losses_of(stage.layers, hessian, errors)
    head = head_of(model)
    if head.name in checkpoint.layers:
        untie(model, head)
        moment = HessianSum(head.shape[1])
        with weights.outside():
            for batch, states in zip(batches, hidden, strict=True):
                moment.add(head_inputs(model, plan, head, batch, states))
            errors = {head.name: put_stored(head, checkpoint, weights)}
        yield from losses_of([head], moment.mean(), errors)


def losses_of(
    layers: list[Layer], hessian: Float[Tensor, "n n"], errors: dict[str, Tensor]
) -> Iterator[tuple[str, float]]:
    """Yield name and loss of layers that share their inputs."""
    for layer in layers:
        error = errors[layer.name].double()
        yield layer.name, float(((error @ hessian.double()) * error).sum())


def layers_in(stage: Stage, checkpoint: Checkpoint) -> Stage:
    """Return the stage with those of its layers that the checkpoint stores compressed."""
    return replace(stage, layers=[la for la in stage.layers if la.name in checkpoint.layers])


def put_stored(
    layer: Layer, checkpoint: Checkpoint, weights: Weights
) -> Float[Tensor, "rows columns"]:
    """Give the layer its stored value and return weight − value."""
    value = decoded(checkpoint, layer.name)
    original = weights.original(layer.module)
    error = (original.T if layer.transposed else original).float() - value
    layer.assign(value)
    return error


def decoded(checkpoint: Checkpoint, name: str) -> Float[Tensor, "rows columns"]:
    """Return the value that a layer's record holds."""
    stored = codes.unpack(checkpoint.record(name))
    return types.value(stored.code, stored.step, stored.group_size, stored.outliers)


def hessians_of(
    block: nn.Module, stages: list[Stage], calls: list[Call]
) -> tuple[Iterator[tuple[Stage, Tensor]], list[Tensor]]:
    """Run a block on every call; return each stage's Hessian, and the hidden states."""
    moments = [HessianSum(stage.layers[0].shape[1]) for stage in stages]
    entered = {stage.among: Entered(stage.among, []) for stage in stages if stage.among}
    with ExitStack() as hooks, torch.no_grad():
        for stage, moment in zip(stages, moments, strict=True):
            watch = partial(add_inputs, moment)
            seen = stage.layers[0].module.register_forward_pre_hook(watch)
            hooks.callback(seen.remove)
        for among, tokens in entered.items():
            watch = partial(keep_inputs, tokens.batches)
            hooks.callback(among.entry.register_forward_pre_hook(watch).remove)
        hidden = [call.run(block) for call in calls]
    return zip(stages, map(partial(hessian_of, entered), stages, moments), strict=True), hidden


def hessian_of(
    entered: dict[Experts, Entered], stage: Stage, moment: HessianSum
) -> Float[Tensor, "n n"]:
    """Return the Hessian that a stage was rounded on: an expert's may have borrowed tokens."""
    own = Seen(moment.mean(), moment.tokens, moment.dropped)
    return own.hessian if stage.among is None else entered[stage.among].blended(stage, own).hessian


def keep_inputs(kept: list[Tensor], _: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Keep what a module is given, as a hook before its forward pass."""
    kept.append(args[0])


def add_inputs(moment: HessianSum, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Add what a layer is given, as a hook before its forward pass."""
    moment.add(args[0])

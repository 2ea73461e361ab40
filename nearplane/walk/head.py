"""The output head, which is rounded only when asked: it is a layer like others, but in no block."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nearplane.types import NearplaneError
from nearplane.walk.blocks import Layer, is_linear
from nearplane.walk.capture import Stop, replaced_forward
from nearplane.walk.observe import Plan


def head_of(model: Any) -> Layer:
    """Return the layer that makes logits; raises NearplaneError when the model has none."""
    head = model.get_output_embeddings()
    if head is None or not is_linear(head):
        raise NearplaneError(f"{type(model).__name__} has no linear output head to quantize")
    name = next(name for name, module in model.named_modules() if module is head)
    return Layer(name, head)


def untie(model: Any, head: Layer) -> None:
    """Give the head a weight of its own where it shares the embedding's; the config says so."""
    shared = model.get_input_embeddings()
    if head.module.weight is shared.weight:
        head.module.weight = nn.Parameter(shared.weight.detach(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def head_inputs(
    model: nn.Module, plan: Plan, head: Layer, tokens: Int64[Tensor, "n length"], hidden: Tensor
) -> Float[Tensor, "n length columns"]:
    """Return what the head is given when the last block gives `hidden`."""
    seen: list[Tensor] = []

    def take(_: nn.Module, args: tuple) -> None:
        seen.append(args[0])
        raise Stop

    def hand_on(index: int, args: tuple, kwargs: dict) -> Any:
        return (hidden,) if plan.tuples[index] else hidden

    hook = head.module.register_forward_pre_hook(take)
    try:
        with replaced_forward(plan.blocks, hand_on), torch.no_grad():
            model(input_ids=tokens, use_cache=False)
    except Stop:
        pass
    finally:
        hook.remove()
    return seen[0]

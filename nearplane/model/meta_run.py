"""Run a model on the meta device: which layers share an input, how many tokens experts get."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nearplane.model.blocks import Layer
from nearplane.model.experts import Experts
from nearplane.model.forward_arguments import first_input, forward_arguments
from nearplane.model.operator_count import OperatorCount

TOKENS = 4


@dataclass(frozen=True)
class MetaRun:
    """Layers grouped by their input tensor, and the share of all tokens that each expert gets.

    - `shares`: by the names of the experts' layers; assumes that all experts are equally likely.
    - `launches`: operators of the whole model that a GPU starts kernels for.
    """

    stages: list[list[Layer]]
    shares: dict[str, float]
    launches: int = 0


def meta_run(model: Any, layers: list[Layer]) -> MetaRun:
    """Return which of some layers share an input, without values and so without memory.

    A model that cannot run on the meta device gets a stage for every layer and all tokens for every
    expert, from which a plan overestimates the time.
    """
    groups: dict[int, list[Layer]] = {}
    alive: list[Tensor] = []  # keeps the inputs in memory, so that each has an id() of its own
    shares: dict[nn.Module, float] = {}

    def note(layer: Layer, _: nn.Module, args: tuple, kwargs: dict) -> None:
        given = first_input(args, kwargs)
        alive.append(given)
        groups.setdefault(id(given), []).append(layer)

    def note_share(experts: Experts, args: tuple[Tensor, ...]) -> None:
        share = args[1].shape[1] / len(experts)
        shares.update(dict.fromkeys(experts.modules(), share))

    hooks: list[Any] = [
        la.module.register_forward_pre_hook(partial(note, la), with_kwargs=True) for la in layers
    ]
    mixtures = [module for module in model.modules() if isinstance(module, Experts)]
    hooks += [experts.register_forward_pre_hook(note_share) for experts in mixtures]
    count = OperatorCount()
    try:
        counted = ran_on_meta(model, count)
        if not counted:
            # some operators cannot be counted
            groups.clear()
            if not ran_on_meta(model, nullcontext()):
                groups.clear()
    finally:
        for hook in hooks:
            hook.remove()
    named = {layer.name: shares[layer.module] for layer in layers if layer.module in shares}
    return MetaRun(
        list(groups.values()) or [[layer] for layer in layers], named, count.launches * counted
    )


def ran_on_meta(model: Any, counting: AbstractContextManager) -> bool:
    """Run a model without values inside a `with` block; return whether it can be run so."""
    try:
        with torch.no_grad(), counting:
            inputs = meta_inputs(TOKENS)
            model(**inputs | forward_arguments(model, inputs["input_ids"]))
    # whatever a model's code raises: it was not made for a run without numbers
    except Exception:
        return False
    return True


def meta_inputs(tokens: int) -> dict[str, Tensor]:
    """Return inputs on the meta device, with a complete mask so that no model computes one."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    return {"input_ids": ids, "attention_mask": torch.zeros(1, 1, tokens, tokens, device="meta")}

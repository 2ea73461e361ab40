"""A run without numbers: which layers are given the same tensor, and what share of the tokens."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nearplane.model.blocks import Layer
from nearplane.model.experts import Experts

TOKENS = 4


@dataclass(frozen=True)
class MetaRun:
    """Layers grouped by the tensor they are given, and the share of all tokens that is in it.

    - `shares`: for layers of experts, if every expert is as likely as the others; by name.
    """

    stages: list[list[Layer]]
    shares: dict[str, float]


def meta_run(model: Any, layers: list[Layer]) -> MetaRun:
    """Return what a run on the meta device shows of some layers.

    A model that cannot run so gets a stage for every layer and all tokens for every expert, which
    overestimates the time.
    """
    groups: dict[int, list[Layer]] = {}
    alive: list[Tensor] = []  # so that no identity is used twice
    shares: dict[nn.Module, float] = {}

    def note(layer: Layer, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        alive.append(args[0])
        groups.setdefault(id(args[0]), []).append(layer)

    def note_share(experts: Experts, args: tuple[Tensor, ...]) -> None:
        share = args[1].shape[1] / len(experts)
        shares.update(dict.fromkeys(experts.modules(), share))

    hooks = [la.module.register_forward_pre_hook(partial(note, la)) for la in layers]
    mixtures = [module for module in model.modules() if isinstance(module, Experts)]
    hooks += [experts.register_forward_pre_hook(note_share) for experts in mixtures]
    try:
        with torch.no_grad():
            model(**nothing(TOKENS), use_cache=False)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError):
        groups = {}
    finally:
        for hook in hooks:
            hook.remove()
    named = {layer.name: shares[layer.module] for layer in layers if layer.module in shares}
    return MetaRun(list(groups.values()) or [[layer] for layer in layers], named)


def nothing(tokens: int) -> dict[str, Tensor]:
    """Return inputs without numbers; a mask that is complete, so that no model looks into it."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    return {"input_ids": ids, "attention_mask": torch.zeros(1, 1, tokens, tokens, device="meta")}

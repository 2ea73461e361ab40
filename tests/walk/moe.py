"""Tiny random models whose layers have experts, and what they should see, computed another way."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.export.tiny import SIZES
from tests.walk.tiny import TOKENS, made

HEADS = {"num_key_value_heads": 2, "max_position_embeddings": 64}
ROUTED = {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 2}
LATENT = {
    **{"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8},
    **{"v_head_dim": 8, "num_key_value_heads": 4, "max_position_embeddings": 64},
}


@dataclass(frozen=True)
class Family:
    """A maker of models, and which of their parts the walk should find.

    - `experts`: the name of the last block's experts; `router`: what chooses them.
    - `beside`: linear layers of the last block that are in no expert and no attention.
    """

    make: Callable[..., PreTrainedModel]
    top_k: int = 2
    experts: str = "model.layers.1.mlp.experts"
    router: str = "model.layers.1.mlp.gate"
    beside: tuple[str, ...] = ()

    def model(self, **sizes: Any) -> PreTrainedModel:
        """Return the model with matrices loud enough for their rounding to be heard."""
        model = self.make(**sizes)
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.data.mul_(6)
            if name.endswith("bias"):
                parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
        return model


def mixtral(**sizes: Any) -> PreTrainedModel:
    routed = {"intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2}
    return made(MixtralForCausalLM, MixtralConfig(**SIZES | HEADS | routed | sizes))


def qwen3_moe(**sizes: Any) -> PreTrainedModel:
    more = {"intermediate_size": 48, "head_dim": 8, "mlp_only_layers": []}
    return made(Qwen3MoeForCausalLM, Qwen3MoeConfig(**SIZES | HEADS | ROUTED | more | sizes))


def qwen2_moe(**sizes: Any) -> PreTrainedModel:
    more = {"intermediate_size": 48, "shared_expert_intermediate_size": 40}
    return made(Qwen2MoeForCausalLM, Qwen2MoeConfig(**SIZES | HEADS | ROUTED | more | sizes))


def deepseek_v3(**sizes: Any) -> PreTrainedModel:
    """Return a dense block and one with experts in two groups and a shared one."""
    routed = {"moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 2}
    more = {"intermediate_size": 48, "n_shared_experts": 1, "first_k_dense_replace": 1}
    groups = {"n_group": 2, "topk_group": 1}
    config = DeepseekV3Config(**SIZES | LATENT | routed | more | groups | sizes)
    return made(DeepseekV3ForCausalLM, config)


def gpt_oss(**sizes: Any) -> PreTrainedModel:
    """Return experts whose tensors are transposed and interleaved, with biases."""
    routed = {"intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2}
    more = {"head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    return made(GptOssForCausalLM, GptOssConfig(**SIZES | HEADS | routed | more | sizes))


SHARED = tuple(f"{kind}_proj" for kind in ("gate", "up", "down"))

FAMILIES = {
    "mixtral": Family(mixtral),
    "qwen3_moe": Family(qwen3_moe),
    "qwen2_moe": Family(qwen2_moe, beside=tuple(f"mlp.shared_expert.{n}" for n in SHARED)),
    "deepseek_v3": Family(deepseek_v3, beside=tuple(f"mlp.shared_experts.{n}" for n in SHARED)),
    "gpt_oss": Family(gpt_oss, router="model.layers.1.mlp.router"),
}


def in_double(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy in float64, in which transformers has only its slow way through experts."""
    copied = copy.deepcopy(model).double()
    copied.set_experts_implementation("eager")
    return copied


def matrices(fused: Any, expert: int) -> dict[str, Tensor]:
    """Return the matrices of one expert of a fused module, as (out, in)."""
    both, down = fused.gate_up_proj[expert], fused.down_proj[expert]
    if fused.is_transposed:
        both, down = both.T, down.T
    half = len(both) // 2
    gate, up = (both[:half], both[half:]) if fused.is_concatenated else (both[::2], both[1::2])
    return {"gate_proj": gate, "up_proj": up, "down_proj": down}


def put(model: nn.Module, name: str, value: Tensor) -> None:
    """Let a layer of a model with fused experts hold `value`, given as (out, in)."""
    above, _, kind = name.rpartition(".")
    experts, _, index = above.rpartition(".")
    if index.isdigit() and experts.endswith("experts"):
        matrices(model.get_submodule(experts), int(index))[kind].data.copy_(value)
    else:
        model.get_submodule(name).weight.data.copy_(value)


def entering(model: nn.Module, experts: str, tokens: Tensor = TOKENS) -> tuple[Tensor, Tensor]:
    """Return what enters fused experts when a model runs, and the experts chosen for each token."""
    seen = []

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[:2])

    hook = model.get_submodule(experts).register_forward_pre_hook(note)
    with torch.no_grad():
        model(input_ids=tokens, use_cache=False)
    hook.remove()
    return seen[0]


def inner_states(fused: Any, expert: int, x: Tensor) -> Tensor:
    """Return what an expert's down projection is given for `x`, by the module's own arithmetic."""
    both = matrices(fused, expert)
    gate, up = x @ both["gate_proj"].T, x @ both["up_proj"].T
    if fused.has_bias:
        bias = fused.gate_up_proj_bias[expert]
        half = len(bias) // 2
        interleaved = not fused.is_concatenated
        gate = gate + (bias[::2] if interleaved else bias[:half])
        up = up + (bias[1::2] if interleaved else bias[half:])
    if not fused.is_concatenated:
        return fused._apply_gate(torch.stack([gate, up], -1).flatten(-2))
    return fused.act_fn(gate) * up


def moment(x: Tensor) -> Tensor:
    return x.T @ x / max(len(x), 1)

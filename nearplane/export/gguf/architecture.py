"""A model's configuration -> the metadata of a GGUF file, for the families that llama.cpp runs.

What a family's configuration says and llama.cpp does not compute is refused: a file that loads and
answers differently would be worse than none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType
from jaxtyping import Float32
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nearplane.types import NearplaneError

DEFAULT, FULL, SLIDING = "default", "full_attention", "sliding_attention"
GELU = ("gelu_pytorch_tanh", "gelu_new")
GEMMA3_PERIOD = 6  # of this many blocks, llama.cpp gives the last one full attention


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp knows a family.

    - `arch`: its architecture. `add`: writes what only this family has.
    - `activations`: between the projections of a feed-forward layer; all mean the same.
    - `permuted`: whether rows of q and k are in the order of rotated pairs, not of halves.
    - `norm_offset`: what llama.cpp wants added to the weights of norms.
    """

    arch: MODEL_ARCH
    add: Callable[[GGUFWriter, Any], None]
    activations: tuple[str, ...] = ("silu",)
    permuted: bool = False
    norm_offset: float = 0.0


def architecture_of(config: Any) -> Architecture:
    """Return how llama.cpp knows the family of a configuration; NearplaneError if not supported."""
    family = getattr(config, "model_type", None)
    if family not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise NearplaneError(f"a GGUF file of {family} models cannot be written, only of {known}")
    found = ARCHITECTURES[family]
    names = ("hidden_act", "hidden_activation", "activation_function")
    activation = next(filter(None, (getattr(config, name, None) for name in names)), None)
    if activation not in found.activations:
        raise NearplaneError(
            f"llama.cpp runs {family} with {found.activations[0]} only, not {activation}"
        )
    return found


def refuse(config: Any, *names: str) -> None:
    """Raise NearplaneError if a configuration sets any of these."""
    for name in names:
        if getattr(config, name, None):
            raise NearplaneError(
                f"llama.cpp does not run {config.model_type} with {name} = {getattr(config, name)}"
            )


def add_hyperparameters(writer: GGUFWriter, config: Any) -> None:
    """Write what llama.cpp needs to know of a model beside its tensors and its vocabulary."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    architecture_of(config).add(writer, config)


def head_size(config: Any) -> int:
    """Return how many numbers a head has of each token."""
    own = getattr(config, "head_dim", None)
    return own or config.hidden_size // config.num_attention_heads


def add_rotated(writer: GGUFWriter, config: Any) -> None:
    """Write what all families with grouped queries, RMS norms and rotary positions have."""
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    rotated = getattr(config, "partial_rotary_factor", None) or 1.0
    writer.add_rope_dimension_count(int(rotated * head_size(config)))


def add_gpt2(writer: GGUFWriter, config: Any) -> None:
    """Write what GPT-2 has; NearplaneError for attention that is scaled otherwise."""
    refuse(config, "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")
    if not config.scale_attn_weights:
        raise NearplaneError("llama.cpp does not run gpt2 with scale_attn_weights = False")
    writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def add_phi3(writer: GGUFWriter, config: Any) -> None:
    """Write what Phi-3 has: windows in all blocks, or in none."""
    add_rotated(writer, config)
    writer.add_sliding_window(config.sliding_window or 0)
    add_rotation(writer, config.rope_parameters)


def add_llama(writer: GGUFWriter, config: Any) -> None:
    """Write what Llama and Mistral have."""
    add_rotated(writer, config)
    add_rotation(writer, config.rope_parameters, factors=True)


def add_qwen(writer: GGUFWriter, config: Any) -> None:
    """Write what Qwen 2 and 3 have."""
    add_rotated(writer, config)
    refuse(config, "use_sliding_window")
    add_rotation(writer, config.rope_parameters)


def add_mixtral(writer: GGUFWriter, config: Any) -> None:
    """Write what Mixtral has: a Mistral with experts."""
    add_llama(writer, config)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)


def add_qwen3_moe(writer: GGUFWriter, config: Any) -> None:
    """Write what Qwen 3 with experts has; NearplaneError for blocks without any."""
    refuse(config, "mlp_only_layers")
    if not config.norm_topk_prob or config.decoder_sparse_step != 1:
        raise NearplaneError(
            "llama.cpp runs qwen3_moe with norm_topk_prob and experts in every block only"
        )
    add_qwen(writer, config)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def add_gemma2(writer: GGUFWriter, config: Any) -> None:
    """Write what Gemma 2 has: windows in every other block, and caps of scores and logits."""
    add_rotated(writer, config)
    refuse_scale(config)
    wanted = [SLIDING, FULL] * config.num_hidden_layers
    if config.layer_types != wanted[: config.num_hidden_layers]:
        raise NearplaneError("llama.cpp runs gemma2 with a window in every other block only")
    writer.add_sliding_window(config.sliding_window)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping or 0.0)
    writer.add_final_logit_softcapping(config.final_logit_softcapping or 0.0)
    add_rotation(writer, config.rope_parameters)


def add_gemma3(writer: GGUFWriter, config: Any) -> None:
    """Write what Gemma 3 has: windows with positions of their own."""
    add_rotated(writer, config)
    refuse_scale(config)
    refuse(config, "attn_logit_softcapping", "use_bidirectional_attention")
    kinds = [
        FULL if (i + 1) % GEMMA3_PERIOD == 0 else SLIDING for i in range(len(config.layer_types))
    ]
    if list(config.layer_types) != kinds:
        raise NearplaneError(
            f"llama.cpp runs gemma3 with full attention in every {GEMMA3_PERIOD}th block only"
        )
    writer.add_sliding_window(config.sliding_window)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    local = config.rope_parameters[SLIDING]
    if local["rope_type"] != DEFAULT:
        raise NearplaneError("llama.cpp does not scale the positions of gemma3's windows")
    writer.add_rope_freq_base_swa(local["rope_theta"])
    add_rotation(writer, config.rope_parameters[FULL])


def refuse_scale(config: Any) -> None:
    """Raise NearplaneError unless scores are divided by the root of the size of a head."""
    if config.query_pre_attn_scalar != head_size(config):
        raise NearplaneError(
            f"llama.cpp divides scores of {config.model_type} by √{head_size(config)}, the model "
            f"by √{config.query_pre_attn_scalar}"
        )


def add_rotation(writer: GGUFWriter, rope: dict[str, Any], factors: bool = False) -> None:
    """Write the base and the scaling of rotary positions; NearplaneError for an unknown scaling.

    - `factors`: whether the family has a tensor for Llama 3's (`rotation_factors`).
    """
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", DEFAULT)
    if kind == DEFAULT or (kind == "llama3" and factors):
        return
    if kind not in ("linear", "yarn"):
        raise NearplaneError(f"rotary positions scaled as {kind!r} cannot be written to GGUF")
    writer.add_rope_scaling_type(RopeScalingType(kind))
    writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        refused = {"mscale", "mscale_all_dim", "attention_factor"} & {
            k for k, v in rope.items() if v
        }
        if refused:
            raise NearplaneError(f"YaRN with {min(refused)} cannot be written to GGUF")
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for name in ("beta_fast", "beta_slow"):
            if rope.get(name) is not None:
                getattr(writer, f"add_rope_scaling_yarn_{name}")(rope[name])


def rotation_factors(config: Any) -> Float32[Tensor, " half_head"] | None:
    """Return by what llama.cpp divides each frequency of Llama 3's scaled rotation, else None."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", DEFAULT) != "llama3":
        return None
    size = head_size(config)
    plain = rope["rope_theta"] ** (-torch.arange(0, size, 2).float() / size)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return (plain / scaled).float()


ARCHITECTURES = {
    "llama": Architecture(MODEL_ARCH.LLAMA, add_llama, permuted=True),
    "mistral": Architecture(MODEL_ARCH.LLAMA, add_llama, permuted=True),
    "mixtral": Architecture(MODEL_ARCH.LLAMA, add_mixtral, permuted=True),
    "qwen2": Architecture(MODEL_ARCH.QWEN2, add_qwen),
    "qwen3": Architecture(MODEL_ARCH.QWEN3, add_qwen),
    "qwen3_moe": Architecture(MODEL_ARCH.QWEN3MOE, add_qwen3_moe),
    "gemma2": Architecture(MODEL_ARCH.GEMMA2, add_gemma2, GELU, norm_offset=1.0),
    "gemma3_text": Architecture(MODEL_ARCH.GEMMA3, add_gemma3, GELU, norm_offset=1.0),
    "phi3": Architecture(MODEL_ARCH.PHI3, add_phi3),
    "gpt2": Architecture(MODEL_ARCH.GPT2, add_gpt2, GELU),
}

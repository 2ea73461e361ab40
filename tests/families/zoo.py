"""A tiny random model of every causal language model that the installed transformers registers.

Made from configuration classes alone: their default values are shrunk by the names of the fields,
and `OVERRIDES` says what that does not serve. Nothing is downloaded.
"""

from copy import deepcopy
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedConfig,
    SiglipVisionConfig,
)
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
# also holds every entry of MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
MULTIMODAL = modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

# the largest value that a field of this name keeps; a smaller or absent default stays
LARGEST: dict[str, int] = {
    name: value
    for value, names in {
        1: "n_shared_experts num_shared_experts moe_num_shared_experts topk_group",
        2: """num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers depth
            layers num_encoder_layers num_decoder_layers num_layers_per_stack num_blocks
            resampler_depth conf_num_hidden_layers num_experts_per_tok moe_k moe_topk n_group
            n_groups o_groups linear_num_key_heads num_quantizers num_global_layers
            aligner_num_add_layers num_timestamp_prediction_layers L_cycles""",
        4: """num_attention_heads num_heads n_head n_heads encoder_attention_heads
            attention_heads decoder_attention_heads num_encoder_attention_heads
            num_decoder_attention_heads swa_num_attention_heads num_sliding_attention_heads
            linear_num_value_heads linear_num_heads index_n_heads n_mamba_heads num_experts
            num_local_experts n_routed_experts moe_num_experts conf_num_attention_heads
            resampler_n_heads resampler_heads index_block_size index_topk_blocks pos_emb_height
            pos_emb_width num_kv_heads num_codebooks zero_expert_num num_query_tokens
            latent_query_num num_image_tokens mm_tokens_per_image resampler_n_latents
            resampler_num_latents""",
        8: """index_topk mamba_chunk_size chunk_size laurel_rank mamba_n_heads mamba_num_heads
            local_attn_chunk_length lsh_attn_chunk_length block_size n_window""",
        16: """head_dim swa_head_dim d_kv attention_head_dim kv_channels d_head
            qk_nope_head_dim qk_rope_head_dim v_head_dim linear_key_head_dim
            linear_value_head_dim linear_head_dim dim_head mamba_d_head mamba_head_dim
            mamba_d_state ssm_state_size state_size resampler_head_dim resampler_dim_head
            sliding_window sliding_window_size attention_chunk_size window_size
            attention_window_size local_attention rotary_dim time_step_rank mamba_dt_rank
            keep_window_size patch_size hidden_size_per_layer_input attention_head_size
            rel_extent adapter_rank num_position_embeddings num_pos_feats num_patches input_dim
            input_feat_size n_mel_bins num_mel_bins feature_size codebook_dim num_filters
            upsample_groups""",
        32: """moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size
            shared_intermediate_size moe_shared_expert_intermediate_size share_expert_dim
            shared_experts_intermediate_size q_lora_rank kv_lora_rank o_lora_rank
            index_head_dim image_size base_channels latent_channels downsample_hidden_size
            router_hidden_size max_num_patches max_image_size max_vit_seq_len img_max_token_num
            hc_lowrank output_channels""",
        64: """hidden_size d_model n_embd embed_dim emb_dim word_embed_proj_dim hidden_dim
            embedding_size embedding_dim out_hidden_size text_hidden_size output_dim
            projection_dim encoder_hidden_size vision_output_dim audio_hidden_size
            decoder_hidden_size backbone_hidden_size input_embedding_size output_embedding_size
            lru_width max_source_positions max_target_positions hidden_size_global
            adapter_input_size adapter_in_dim adapter_out_dim patch_embed_hidden_size
            pronunciation_embed_dim shape_embed_dim image_text_hidden_size vision_hidden_size
            projector_input_dim projector_output_dim image_token_embed_dim
            projection_hidden_size projection_hidden_dim thinker_hidden_size
            max_2d_position_embeddings position_embedding_size decoder_dim
            post_conv_in_channels post_conv_mid_channels post_conv_out_channels
            vector_quantization_hidden_dimension""",
        96: """intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size dff
            d_ff d_inner mlp_dim dim_ff feed_forward_size projector_hidden_size
            dense_intermediate_size intermediate_size_mlp projection_intermediate_size
            alignment_intermediate_size moe_hidden_size ext_pw_out_channel
            depthwise_separable_out_channel nemo_conv_channels""",
        128: """vocab_size audio_vocab_size vocab_size_per_layer_input max_position_embeddings
            n_positions n_ctx context_length max_seq_len num_embeddings codebook_size
            codebook_vocab_size decoder_vocab_size pronunciation_vocab_size shape_vocab_size
            encoder_hash_byte_group_vocab ngram_vocab_size_base mel_vocab_size
            unpadded_vocab_size mem_len position_bias_num_buckets position_bias_max_distance
            max_pos_emb seq_len""",
    }.items()
    for name in names.split()
}

# what a field of this name becomes where its default is not None: indices of layers, channels
REPLACED: dict[str, Any] = {
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [1],
    "global_attn_indexes": [1],
    "channel_multiplier": [1, 1],
    "sscp_conv_channel_size": [32, 16],
    "insert_layer_id": 0,
    "downsample_channels": [32, 64],
}


def attention(kinds: str) -> dict[str, Any]:
    """Return the fields that make layers of these kinds, a word each."""
    types = [kind if kind in WHOLE_NAMES else f"{kind}_attention" for kind in kinds.split()]
    return {"num_hidden_layers": len(types), "layer_types": types}


def mlp(kinds: str) -> dict[str, Any]:
    """Return the field that says which layers have experts."""
    return {"mlp_layer_types": kinds.split()}


WHOLE_NAMES = ("conv", "hybrid", "hybrid_sliding", "minimax_m3_sparse")
THETA = {"rope_type": "default", "rope_theta": 10000.0}
BOTH_THETAS = {"rope_parameters": {"full_attention": THETA, "sliding_attention": THETA}}
MROPE = {"rope_parameters": THETA | {"mrope_section": [4, 2, 2]}}
# the last two layers use the keys and values of earlier ones
SHARED_KEYS = attention("sliding sliding full sliding full") | {"num_kv_shared_layers": 2}
# stands in for towers that need the package timm
TOWER = SiglipVisionConfig(
    **{"hidden_size": 64, "intermediate_size": 96, "image_size": 32, "patch_size": 16},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "model_args": {"embed_dim": 64}},
)

# the embedding's scale, its square root, is another number in every type
UNROUND = {"hidden_size": 56}
# by the model type of the configuration or, where it has none, by the name of its class
OVERRIDES: dict[str, dict[str, Any]] = {
    "afmoe": attention("sliding sliding full") | {"num_dense_layers": 1},
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"local_attention_window_len": 16},
    "chameleon": {"vocabulary_map": {"<image>": 2}},
    "cohere2_moe": attention("full sliding full") | mlp("dense sparse sparse"),
    "cohere_compass_text": attention("sliding full")
    | {"rope_parameters": {"sliding_attention": THETA, "full_attention": None}},
    "DbrxAttentionConfig": {"rope_theta": 10000.0, "clip_qkv": 8.0},
    "deepseek_ocr2_text": mlp("dense sparse") | {"num_experts_per_tok": 2},
    "deepseek_v2": {"first_k_dense_replace": 1, "num_experts_per_tok": 2},
    "deepseek_v3": {"first_k_dense_replace": 1},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2}
    | {"first_k_dense_replace": 1},
    "dots3_note_text": {"swa_head_dim": 32, "swa_qk_nope_head_dim": 16, "swa_v_head_dim": 16}
    | {"swa_q_lora_rank": 32, "swa_kv_lora_rank": 32}
    | {"swa_num_attention_heads": 8, "swa_num_key_value_heads": 8},
    "ernie4_5_vl_moe_text": {"rope_parameters": THETA | {"mrope_section": [3, 3, 2]}}
    | {"moe_intermediate_size": [32, 32]},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_d_head": 16},
    "fast_vlm": {"vision_config": TOWER},
    "flint": attention("full sliding full") | {"mlp_only_layers": [0]},
    "FunAsrNanoAdaptorConfig": {"intermediate_size": 16},
    "gemma": UNROUND,
    "gemma2": UNROUND,
    "gemma3_text": UNROUND,
    "gemma3n_text": SHARED_KEYS
    | {"intermediate_size": [96] * 5, "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0]}
    | {"laurel_rank": 16},
    # like the family's larger models, and gemma4_text like its smaller ones
    "gemma4": {
        "text_config": attention("sliding full")
        | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2}
        | {"moe_intermediate_size": 32, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
        | {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
        | {"use_double_wide_mlp": False}
    },
    "gemma4_text": SHARED_KEYS | {"global_head_dim": 32, "use_double_wide_mlp": True},
    "gemma4_unified_text": {"global_head_dim": 32},
    "glm4v_text": MROPE,
    "glm4v_moe_text": {
        "rope_parameters": THETA | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    },
    "glm5_next_text": attention("linear indexed indexed linear")
    | mlp("dense sparse sparse sparse")
    | {"index_kpool": 4, "indexer_types": ["full", "full", "shared", "full"]},
    "glm_moe_dsa": attention("indexed indexed indexed")
    | mlp("dense sparse sparse")
    | {"indexer_types": ["full", "full", "shared"]},
    "glm_ocr_text": MROPE,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "spatial_target_layers": [0, 0, 1, 1]}
    | {"downsample_rate": "1/2"},
    "granite_speech_encoder": {"context_size": 16},
    "granite_speech_plus_encoder": {"context_size": 16},
    "granitemoehybrid": attention("linear full"),
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "hunyuan_vl_text": {"head_dim": 16}
    | {"rope_parameters": THETA | {"mrope_section": [2, 2, 2, 2]}},
    "inkling2_text": attention("hybrid_sliding hybrid hybrid_sliding hybrid_sliding")
    | {"n_layers_per_attn_res_block": 2},
    "inkling_text": attention("hybrid_sliding hybrid_sliding hybrid") | mlp("dense sparse sparse"),
    "inkling_vision": {"patch_size": 2, "n_layers": 3},
    "jamba": {"num_hidden_layers": 3, "attn_layer_period": 3, "attn_layer_offset": 2},
    "laguna": attention("full sliding full")
    | mlp("dense sparse sparse")
    | {"num_attention_heads_per_layer": [4, 8, 4]},
    "lfm2_moe": attention("conv conv full") | {"num_dense_layers": 1},
    "llama4_text": attention("chunked chunked chunked full")
    | {"no_rope_layers": [1, 1, 1, 0], "interleave_moe_layer_step": 2},
    "mamba2": {"num_heads": 8},
    "mellum": attention("full sliding full")
    | mlp("dense sparse sparse")
    | BOTH_THETAS
    | {"sliding_window": 16},
    "mimi": {"num_quantizers": 4},
    "minimax_m3_vl_text": attention("full minimax_m3_sparse minimax_m3_sparse")
    | mlp("dense sparse sparse"),
    "ministral": attention("full sliding") | {"head_dim": 16},
    "mistral_large4_text": attention("indexed indexed indexed indexed")
    | mlp("dense sparse sparse sparse")
    | {"kv_source_layers": [0, 1, 1, 3], "no_rope_layers": [1, 1, 1, 0]}
    | {"indexer_types": ["full", "full", "shared", "full"]},
    "mllama_text_model": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    "modernbert-decoder": attention("full sliding full"),
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "muse_spark_audio": {"num_hidden_layers": 4, "depths": [1] * 4}
    | {"hidden_sizes": [16, 16, 32, 64]},
    "muse_spark_text": attention("sliding full sliding")
    | mlp("dense sparse sparse")
    | {"layer_rope_theta": [10000.0, 0, 10000.0]},
    "nemotron": {"num_key_value_heads": 2},
    "paddleocr_vl_text": MROPE,
    "perception_lm": {"vision_config": TOWER},
    "qwen2_5_omni_text": MROPE,
    "qwen2_5_vl_text": MROPE,
    "qwen2_vl_text": MROPE,
    "qwen4_exp_text": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16}
    | {"indexer_budget": 8, "indexer_compress_ratio": 4, "ple_layer_ids": [1], "eos_token_id": 2}
    | {"heads_per_ngram": 2, "split_ngram_parts": 1},
    "radio": {"max_img_size": 32, "video_temporal_patch_size": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"attn_layers": ["local", "lsh"], "axial_pos_shape": [8, 16]}
    | {"axial_pos_embds_dim": [32, 32], "hash_seed": 0},
    "step3p5": attention("full sliding full")
    | mlp("dense sparse sparse")
    | BOTH_THETAS
    | {"num_sliding_attention_heads": 8, "sliding_window": 16},
    "vibevoice_acoustic_tokenizer_encoder": {"depths": [1, 1], "downsampling_ratios": [2]},
    "vaultgemma": UNROUND,
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4}
    | {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
    "zamba2": {"num_hidden_layers": 5, "num_mem_blocks": 2}
    | {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid", "hybrid"]},
}

KNOWN_UNBUILDABLE: dict[str, str] = {
    **dict.fromkeys("blip blip-2 idefics instructblip instructblipvideo".split(), "needs images"),
    **dict.fromkeys("kosmos-2 pix2struct pp_formulanet".split(), "needs images"),
    **dict.fromkeys("florence2 t5gemma2 udop".split(), "encoder and decoder"),
    "vision-encoder-decoder": "needs images",
    **dict.fromkeys("kyutai_speech_to_text voxtral_realtime".split(), "needs audio"),
    **dict.fromkeys("qwen2_5_omni qwen3_omni_moe".split(), "has no forward, its thinker has"),
    **dict.fromkeys("musicgen musicgen_melody".split(), "AutoModel gives it the wrong config"),
    **dict.fromkeys(
        "gemma4_assistant gemma4_unified_assistant".split(), "needs another model's keys and values"
    ),
    "diffusion_gemma": "denoises a block of tokens",
    "evolla": "AutoModel does not find its class",
    "gemma3n": "needs the package timm",
    "pi0": "predicts robot actions",
}

# saved, and loaded again by AutoModelForCausalLM or, for the others, AutoModelForMultimodalLM
NOT_RELOADABLE: dict[str, str] = {
    "emu3": "saves the configuration of its text, which AutoModel has no class for",
    "mllama": "saves the configuration of its text, which AutoModel has no class for",
    "shieldgemma2": "saves weights under names that it does not load",
}


def families() -> list[str]:
    """Return the model types whose language model transformers can look up."""
    return sorted({*CAUSAL, *MULTIMODAL})


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Return the configuration of a family with everything in it made small."""
    return shrunk(CONFIG_MAPPING[model_type])


def shrunk(kind: type[PreTrainedConfig], **more: Any) -> PreTrainedConfig:
    """Return a small configuration of this class, `more` over its entry in `OVERRIDES`."""
    override = deepcopy(OVERRIDES.get(kind.model_type or kind.__name__, {})) | more
    stored = vars(kind())
    stored_as = {
        field.name: kind.attribute_map.get(field.name, field.name) for field in fields(kind)
    }
    default = {name: stored[key] for name, key in stored_as.items() if key in stored}
    small = {}
    for name, value in default.items():
        if isinstance(value, PreTrainedConfig) and isinstance(override.get(name, {}), dict):
            small[name] = shrunk(type(value), **override.pop(name, {}))
        else:
            small[name] = smaller(name, value, default)
    small = {name: value for name, value in small.items() if value is not None}
    return kind(**small | layers(default) | override)


def smaller(name: str, value: Any, default: dict[str, Any]) -> Any:
    """Return the value that this field gets, None to leave it to its class."""
    if value is not None and name in REPLACED:
        return REPLACED[name]
    if isinstance(value, bool):
        return True if name == "is_decoder" else None
    if name == "rope_parameters" and isinstance(value, dict):
        return rope(value)
    if name.endswith("num_key_value_heads") and isinstance(value, int):
        return 4 if value == default.get("num_attention_heads") else min(value, 2)
    if name.endswith(("_token_id", "_token_index", "_token_idx", "_id", "_token_ids")):
        return special(name, value)
    return min(value, LARGEST[name]) if isinstance(value, int) and name in LARGEST else None


def rope(value: dict[str, Any]) -> dict[str, Any]:
    """Return parameters of rotary positions that fit a head of 16 columns."""
    if all(isinstance(item, dict) for item in value.values()):
        return {kind: rope(item) for kind, item in value.items()}
    small = dict(value)
    if "mrope_section" in value:
        half = int(16 * value.get("partial_rotary_factor", 1.0)) // 2
        third = half // 3
        small["mrope_section"] = [half - 2 * third, third, third]
    return small


def special(name: str, value: Any) -> Any:
    """Return tokens below 3, where no random text of these tests goes."""
    first = {"pad": 0, "bos": 1, "eos": 2}
    if isinstance(value, list | tuple):
        return [special(name, item) for item in value]
    return first.get(name.split("_")[0], min(value, 2)) if isinstance(value, int) else None


def layers(default: dict[str, Any]) -> dict[str, Any]:
    """Return the lists that say what each layer is, cut to one layer of every kind."""
    depths = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth", "layers")
    depth = next((name for name in depths if isinstance(default.get(name), int)), "")
    lists = {
        name: value
        for name, value in default.items()
        if isinstance(value, list | tuple)
        and len(value) == default.get(depth)
        and len({str(item) for item in value}) < min(5, len(value))
    }
    kinds = list(zip(*lists.values(), strict=True))
    first = sorted({kind: kinds.index(kind) for kind in kinds}.values())
    first = first * 2 if len(first) == 1 else first
    return {name: [value[i] for i in first] for name, value in lists.items()} | (
        {depth: len(first)} if first else {}
    )


def tiny_model(model_type: str, seed: int = 0) -> nn.Module:
    """Return the family's model with random weights, ready to run."""
    auto = AutoModelForCausalLM if model_type in CAUSAL else AutoModelForMultimodalLM
    config = tiny_config(model_type)
    before = torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(seed)
    # in this mode torch.empty is NaN, which tells what the class leaves uninitialised
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        model = auto.from_config(config, dtype=torch.float32)
    finally:
        torch.use_deterministic_algorithms(before)
    return mended(model, seed).eval()


def mended(model: nn.Module, seed: int) -> nn.Module:
    """Return the model with new values where its class left none, and in matrices of zeros."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        closed = name.endswith("correct_output_scale")  # of a part that Gemma 3n trains open
        if not tensor.isfinite().all() or (tensor.ndim >= 2 or closed) and not tensor.any():
            norm = tensor.ndim == 1 and name.endswith("weight")
            tensor.data.normal_(1.0 if norm else 0.0, 0.05, generator=generator)
    for tensor in model.buffers():
        if tensor.is_floating_point() and tensor.isnan().any():
            tensor.data.nan_to_num_(0.0)
    return model

"""Small random models with four heads, whose linear layers are compressed, all but one."""

from pathlib import Path

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from nearplane.export import checkpoint_format as fmt
from nearplane.export.checkpoint_writer import CheckpointWriter
from nearplane.export.uncompressed import without_weights
from tests.cli.tiny import tokenizer
from tests.export import tiny

LEFT_ALONE = {"model.layers.0.self_attn.o_proj", "transformer.h.0.mlp.c_fc"}
# padded to 320; 128 inputs on 2 or 4 ranks cut groups of 10 in the middle
SIZES = {"vocab_size": 301, "initializer_range": 0.2, "dtype": torch.float32}


def qwen2() -> PreTrainedModel:
    """Two key-value heads, biases, and an output head that is compressed, too."""
    config = Qwen2Config(
        hidden_size=128,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        **SIZES,
    )
    return made(Qwen2ForCausalLM, config)


def gpt2() -> PreTrainedModel:
    """Queries, keys and values in one matrix, which is stored transposed; a tied head."""
    return made(GPT2LMHeadModel, GPT2Config(n_embd=128, n_layer=2, n_head=4, **SIZES))


FAMILIES = {"qwen2": qwen2, "gpt2": gpt2}


def made(kind: type[PreTrainedModel], config: object) -> PreTrainedModel:
    torch.manual_seed(0)
    model = kind(config).eval()
    for layer in tiny.linear_layers(model).values():
        if layer.bias is not None:
            layer.bias.data.normal_()
    return model


def write(family: str, out: Path) -> Path:
    """Write the checkpoint with a tokenizer and return its directory."""
    model = FAMILIES[family]()
    layers = tiny.linear_layers(model)
    if not model.config.tie_word_embeddings:
        layers["lm_head"] = model.lm_head
    packed = {
        name: tiny.pack_layer(name, matrix(layer), seed)
        for seed, (name, layer) in enumerate(layers.items())
        if name not in LEFT_ALONE
    }
    with CheckpointWriter(out) as writer:
        for name, part in packed.items():
            writer.add(name + fmt.RECORD, part.record)
        for name, tensor in without_weights(model.state_dict(), packed, model).items():
            writer.add(name, tensor)
        writer.finish(tiny.config_of(model, packed), {})
    tokenizer(bos=False).save_pretrained(out)
    return out


def matrix(layer: nn.Module) -> torch.Tensor:
    """Return the weight as (outputs, inputs)."""
    weight = layer.get_parameter("weight").detach()
    return weight if isinstance(layer, nn.Linear) else weight.T.contiguous()

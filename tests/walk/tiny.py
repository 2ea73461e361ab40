"""Tiny random models of many families, what a walk should see in each, and hand-made blocks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from nearplane.model.selection import Rules
from tests.export import tiny
from tests.export.tiny import GATED, SIZES

torch.set_num_threads(1)

# 5 sequences: batches of two leave a short last one
TOKENS = torch.randint(2, 61, (5, 24), generator=torch.Generator().manual_seed(0))


def in_blocks(**options) -> Rules:
    """Return rules under which only layers inside of the blocks are quantized."""
    return Rules(keep=("embedding", "head"), **options)


SEPARATE = [
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    ["self_attn.o_proj"],
    ["mlp.gate_proj", "mlp.up_proj"],
    ["mlp.down_proj"],
]
FUSED = [["self_attn.qkv_proj"], ["self_attn.o_proj"], ["mlp.gate_up_proj"], ["mlp.down_proj"]]
OF_GPT2 = [["attn.c_attn"], ["attn.c_proj"], ["mlp.c_fc"], ["mlp.c_proj"]]
OF_OPT = [[*SEPARATE[0]], ["self_attn.out_proj"], ["fc1"], ["fc2"]]


def qwen3() -> PreTrainedModel:
    return made(Qwen3ForCausalLM, Qwen3Config(**SIZES, **GATED, head_dim=8))


def gemma3() -> PreTrainedModel:
    """Return two sliding blocks around a global one; the window is shorter than a sequence."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    sizes = SIZES | {"num_hidden_layers": 3}
    config = Gemma3TextConfig(
        **sizes, **GATED, head_dim=8, sliding_window=8, layer_types=kinds, pad_token_id=0
    )
    return made(Gemma3ForCausalLM, config)


def mistral() -> PreTrainedModel:
    return made(MistralForCausalLM, MistralConfig(**SIZES, **GATED, sliding_window=8))


def phi3() -> PreTrainedModel:
    return made(Phi3ForCausalLM, Phi3Config(**SIZES, **GATED, pad_token_id=0))


def opt() -> PreTrainedModel:
    config = OPTConfig(
        **SIZES, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32, dropout=0.0
    )
    return made(OPTForCausalLM, config)


@dataclass(frozen=True)
class Family:
    """A maker of models, the list that holds their blocks, and the stages of each block."""

    make: Callable[[], PreTrainedModel]
    blocks: str = "model.layers"
    stages: tuple[list[str], ...] = tuple(SEPARATE)

    def model(self) -> PreTrainedModel:
        """Return the model with linear layers loud enough for their rounding to be heard."""
        model = self.make()
        for layer in tiny.linear_layers(model).values():
            layer.weight.data.mul_(8)
            if layer.bias is not None:
                layer.bias.data.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
        return model

    def stage_names(self, model: PreTrainedModel) -> list[list[str]]:
        """Return the full names of the layers of every stage, block after block."""
        count = model.config.num_hidden_layers
        return [
            [f"{self.blocks}.{index}.{name}" for name in stage]
            for index in range(count)
            for stage in self.stages
        ]


FAMILIES = {
    "llama": Family(tiny.llama),
    "llama_tied": Family(tiny.llama_tied),
    "qwen2": Family(tiny.qwen2),
    "qwen3": Family(qwen3),
    "gemma3": Family(gemma3),
    "mistral": Family(mistral),
    "phi3": Family(phi3, stages=tuple(FUSED)),
    "gpt2": Family(tiny.gpt2, "transformer.h", tuple(OF_GPT2)),
    "opt": Family(opt, "model.decoder.layers", tuple(OF_OPT)),
}


def made(kind: type[PreTrainedModel], config: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return kind(config).eval().requires_grad_(False)


class Blocks(nn.Module):
    """An embedding and any blocks, called the way the walk calls a transformers model."""

    def __init__(self, *blocks: nn.Module, width: int = 16):
        super().__init__()
        self.embed = nn.Embedding(61, width)
        self.layers = nn.ModuleList(blocks)
        self.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Tensor:
        hidden = self.embed(input_ids)
        for block in self.layers:
            hidden = block(hidden)
        return hidden


class Residual(nn.Module):
    """hidden + the layers one after the other, in `order` if it is told; one may come twice."""

    def __init__(self, order: str = "", **layers: nn.Module):
        super().__init__()
        self.order = list(order or layers)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, hidden: Tensor) -> Tensor:
        state = hidden
        for name in self.order:
            state = getattr(self, name)(state).tanh()
        return hidden + state


def linear(columns: int = 16, rows: int = 16) -> nn.Linear:
    return nn.Linear(columns, rows, bias=False)

"""Models of random weights, made in seconds.

Layers of one shape hold copies of one matrix, each in memory of its own, so that such a model reads
as much memory as any other.
"""

import copy
from typing import Any

import torch
from records import Kind, record_of
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from nearplane.export.linear import CompressedLinear

HEAD = "lm_head"


def random_model(config: dict, compress: Kind | None, head: bool, device: str = "cpu") -> Any:
    """Return a model in bf16.

    - `config`: of transformers, with `model_type`.
    - `compress`: the method of the layers of its blocks; `head`: and of its output layer.
    """
    settings = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    made: dict[Any, nn.Module] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            chosen = compress if head or name != HEAD else None
            key = chosen, module.out_features, module.in_features
            if key in made:
                model.set_submodule(name, copy.deepcopy(made[key]))
            else:
                made[key] = _layer(*key, device)
                model.set_submodule(name, made[key])
        elif isinstance(module, nn.Embedding):
            shape = module.weight.shape
            module.weight = _fixed(torch.randn(shape, dtype=torch.bfloat16) * 0.02)
        elif name.endswith("norm"):
            module.weight = _fixed(torch.ones(module.weight.shape, dtype=torch.bfloat16))
    model.model.rotary_emb = type(model.model.rotary_emb)(settings)
    if settings.tie_word_embeddings and not (head and compress):
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.to(device).eval()


def _layer(kind: Kind | None, rows: int, columns: int, device: str) -> nn.Module:
    if kind is None:
        layer = nn.Linear(columns, rows, bias=False, device="meta")
        layer.weight = _fixed(torch.randn(rows, columns, dtype=torch.bfloat16) * 0.02)
        return layer
    record = record_of(kind, rows, columns).to(device)
    compressed = CompressedLinear(columns, rows, record, None, torch.bfloat16, False)
    compressed.lay_out()
    return compressed


def _fixed(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight, requires_grad=False)

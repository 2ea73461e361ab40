"""The tensors that are stored as the model has them."""

import copy

import pytest
import torch
from torch import nn

from nearplane.export.uncompressed import uncompressed_tensors
from nearplane.model.block_loading import InMemory
from nearplane.model.experts import split_experts_
from nearplane.model.open_model import open_model
from tests.walk import moe
from tests.walk.tiny import FAMILIES

MODELS = {"llama_tied": FAMILIES["llama_tied"].model, "gpt2": FAMILIES["gpt2"].model}
MODELS |= {"qwen3_moe": moe.FAMILIES["qwen3_moe"].model}


def of_layers(model: nn.Module) -> set[str]:
    """Return the layers of the first block, experts one by one; those of the others stay."""
    prefix = next(name for name, m in model.named_modules() if isinstance(m, nn.ModuleList))
    return {
        name
        for name, module in model.named_modules()
        if name.startswith(f"{prefix}.0.") and isinstance(module, nn.Linear)
    }


@pytest.mark.parametrize("family", MODELS)
def test_by_blocks_and_at_once_give_the_same(family, tmp_path):
    MODELS[family]().save_pretrained(tmp_path)
    whole, parts = open_model(tmp_path), open_model(tmp_path, by_blocks=True)
    for source in (whole, parts):
        split_experts_(source.model)
    layers = of_layers(whole.model)
    expected = dict(uncompressed_tensors(copy.deepcopy(whole.model), layers, InMemory()))
    found = {}
    for name, tensor in uncompressed_tensors(parts.model, layers, parts.loader):
        assert name not in found and not tensor.is_meta
        found[name] = tensor.clone()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not {f"{layer}.weight" for layer in layers} & found.keys()


def test_the_state_of_the_whole_model_is_built_once(tmp_path, monkeypatch):
    """Once a block would be quadratic, for exactly the largest models."""
    MODELS["llama_tied"]().save_pretrained(tmp_path)
    source = open_model(tmp_path, by_blocks=True)
    built, state_dict = [], type(source.model).state_dict
    monkeypatch.setattr(
        type(source.model),
        "state_dict",
        lambda s, *a, **k: built.append(s) or state_dict(s, *a, **k),
    )
    assert list(uncompressed_tensors(source.model, (), source.loader))
    # transformers asks other instances when it loads a block
    assert sum(model is source.model for model in built) == 1

"""Which layers are quantized, and what is said of the others."""

import pytest
import torch
from torch import nn

from nearplane.model.open_model import location
from nearplane.model.selection import Rules, select
from nearplane.types import NearplaneError
from tests.walk.tiny import Blocks, Residual, linear


class Router(nn.Linear):
    """A linear layer with a forward of its own, as Llama 4's router is."""

    def forward(self, hidden):
        scores = super().forward(hidden)
        return scores.sigmoid(), scores


class StackedExperts(nn.Module):
    """Experts in a tensor that cannot be taken apart."""

    def __init__(self, count: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, 8, 16))


class Mixture(nn.Module):
    """A router of five experts beside them, and a layer that is none."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts, self.shared = linear(16, 5), StackedExperts(5), linear(16, 16)


def test_a_layer_with_a_forward_of_its_own_is_named_and_left():
    block = Residual(a=linear())
    block.router = Router(16, 4)
    selection = select(Blocks(block))
    assert selection.in_blocks == ("layers.0.a",)
    assert selection.left_out() == ["layers.0.router (Router) cannot be quantized"]
    with pytest.raises(NearplaneError, match=r"layers.0.router \(Router\)"):
        select(Blocks(block), Rules(strict=True))


def test_routers_of_experts_that_stay_together_stay_too():
    selection = select(Blocks(Mixture()))
    assert selection.in_blocks == ("layers.0.shared",)
    assert selection.left_out() == [
        "layers.0.experts (StackedExperts) cannot be quantized",
        "layers.0.gate stays as it is: it chooses or weighs experts",
    ]


def test_a_convolution_has_no_experts():
    """Although its weight has three dimensions, and the layer beside it as many rows."""
    block = Residual(a=linear(16, 16))
    block.conv = nn.Conv1d(16, 16, 3)
    assert select(Blocks(block)).in_blocks == ("layers.0.a",)


def test_the_names_decide():
    model = Blocks(Residual(a=linear(), b=linear()), Residual(c=linear()))
    selection = select(model, Rules(skip=(r"\.b$",), keep=("embedding",)))
    layers = selection.of(model)
    assert [layer.name for layer in layers] == ["layers.0.a", "layers.1.c"]
    assert selection.among(reversed(layers)) == layers[::-1] and layers[0] in selection
    kept = ["layers.0.b is skipped as asked", "embed stays as it is, as asked"]
    assert selection.left_out() == kept
    with pytest.raises(NearplaneError, match="every layer is skipped"):
        select(model, Rules(skip=(".",)))


def test_a_gguf_file_without_its_package_is_refused_with_the_command(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("nearplane.model.open_model.find_spec", lambda name: None)
    with pytest.raises(NearplaneError, match=r'pip install "nearplane\[gguf\]"'):
        location(tmp_path / "a.gguf")

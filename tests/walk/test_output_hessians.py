"""Output Hessians: those that the model's own backward pass gives, block by block."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nearplane.model.blocks import Layer
from nearplane.model.output_head import head_of
from nearplane.walk import output_hessians
from nearplane.walk.output_hessians import BackwardPasses, OutputHessians, blocks_of, clipped
from nearplane.walk.placement import ActivationLimits, Placement
from nearplane.walk.trace import trace_model
from tests.walk.moe import FAMILIES as MIXTURES
from tests.walk.tiny import FAMILIES, TOKENS, Blocks, Residual, linear


def found_by_blocks(model: Any, limits: ActivationLimits | None = None) -> OutputHessians:
    placement = Placement(model, limits=limits or ActivationLimits())
    trace = trace_model(model, TOKENS, placement)
    passes = BackwardPasses(placement, trace, TOKENS, trace.layers, head_of(model))
    return passes.output_hessians()


def found_at_once(model: Any, layers: list[Layer]) -> dict[str, Tensor]:
    """Return the same by one backward pass through the whole model, sequence by sequence."""
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def add(_: nn.Module, given: Any, slopes: tuple[Tensor]) -> None:
            own = clipped(slopes[0].flatten(0, -2)).double()
            sums[name] = sums.get(name, 0) + own.T @ own

        return add

    hooks = [la.module.register_full_backward_hook(watch(la.name)) for la in layers]
    draws = torch.Generator().manual_seed(0)
    embedding = model.get_input_embeddings().weight.requires_grad_()
    for tokens in TOKENS.split(1):
        out = model(input_ids=tokens)
        logits = out if isinstance(out, Tensor) else out.logits
        drawn = torch.multinomial(torch.softmax(logits[0].detach(), -1), 1, generator=draws)
        loss = nn.functional.cross_entropy(logits[0], drawn[:, 0], reduction="sum")
        loss.backward()
    embedding.requires_grad_(False).grad = None
    for hook in hooks:
        hook.remove()
    return {name: total / total.diagonal().mean() for name, total in sums.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_the_whole_model(family):
    """Float32 sums in another order: relative errors near 1e-6, times the depth; 1e-4 allowed."""
    model = FAMILIES[family].model()
    trace = trace_model(model, TOKENS, Placement(model))
    found, expected = found_by_blocks(model), found_at_once(model, trace.layers)
    assert not found.problem and found.places.keys() == expected.keys()
    for layer in trace.layers:
        (hessian,) = found.of(layer)
        off = (hessian - expected[layer.name]).norm() / expected[layer.name].norm()
        assert float(off) < 1e-4, layer.name


def test_in_a_file_they_are_the_same(tmp_path):
    model = FAMILIES["qwen3"].model()
    in_memory = found_by_blocks(model)
    in_file = found_by_blocks(model, ActivationLimits(None, tmp_path))
    assert in_memory.places == in_file.places
    for place in range(len(in_memory.states)):
        assert in_memory.states[place].equal(in_file.states[place])


@pytest.mark.parametrize("family", MIXTURES)
def test_layers_outside_of_mixtures_have_them(family):
    model = MIXTURES[family].model()
    found = found_by_blocks(model)
    assert not found.problem
    assert any("attn" in name for name in found.places)
    assert not any(".experts." in name for name in found.places)


def test_a_block_that_is_called_twice_adds_up_both():
    torch.manual_seed(0)
    shared = Residual(a=linear())
    model = Blocks(shared, Residual(a=linear()))
    model.layers.append(shared)
    trace = trace_model(model, TOKENS, Placement(model))
    found, expected = found_by_blocks(model), found_at_once(model, trace.layers)
    for layer in trace.layers:
        (own,) = found.of(layer)
        assert torch.allclose(own.double(), expected[layer.name], rtol=1e-3)


class Detached(nn.Module):
    """A block whose code raises an error where gradients are recorded."""

    def __init__(self):
        super().__init__()
        self.a = linear()

    def forward(self, hidden: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("this kernel has no backward pass")
        return hidden + self.a(hidden)


def test_a_model_without_gradients_says_so_and_is_as_before():
    model = Blocks(Residual(a=linear()), Detached())
    found = found_by_blocks(model)
    assert "no backward pass" in found.problem and not found.places
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_parameters_take_gradients_afterwards_if_they_did():
    model = Blocks(Residual(a=linear()), Residual(a=linear()))
    model.requires_grad_(True)
    assert not found_by_blocks(model).problem
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("rows", [1, 2047, 2048, 2049, 6000])
def test_blocks_cover_all_rows(rows):
    blocks = [range(rows)[part] for part in blocks_of(rows)]
    assert [row for part in blocks for row in part] == list(range(rows))
    sizes = [len(part) for part in blocks]
    assert max(sizes) <= output_hessians.MOST_ROWS and max(sizes) - min(sizes) <= 1


def test_of_layers_with_many_rows_there_are_diagonal_blocks(monkeypatch):
    """In one unit for all blocks: the mean diagonal of the whole."""
    model = FAMILIES["llama"].model()
    trace = trace_model(model, TOKENS, Placement(model))
    whole = found_by_blocks(model)
    monkeypatch.setattr(output_hessians, "MOST_ROWS", 20)
    found = found_by_blocks(model)
    for layer in trace.layers:
        (all_rows,), parts = whole.of(layer), found.of(layer)
        assert len(parts) == -(-layer.shape[0] // 20)
        for rows, part in zip(blocks_of(layer.shape[0]), parts, strict=True):
            assert torch.allclose(part, all_rows[rows, rows], rtol=1e-4, atol=1e-6)


def test_long_gradients_are_shortened():
    slopes = torch.ones(9, 4)
    slopes[3] *= 1000
    slopes[5] *= 2
    short = clipped(slopes)
    sizes = short.square().sum(1)
    assert sizes[3] == pytest.approx(4 * output_hessians.LARGEST)
    assert short[5].equal(slopes[5]) and short[0].equal(slopes[0])


def test_few_logits_at_a_time(monkeypatch):
    """Positions that are evenly spaced, where all logits of a sequence would be too many."""
    monkeypatch.setattr(output_hessians, "MOST_LOGITS", 61 * 8)
    found = found_by_blocks(FAMILIES["llama"].model())
    assert not found.problem and found.places

"""Probing: the model comes back as it was, and what matters more is found to do so."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearplane.methods import ECLQ, Target
from nearplane.model.blocks import Layer
from nearplane.walk import sensitivity as probe_file
from nearplane.walk.input_statistics import sum_inputs
from nearplane.walk.placement import Placement
from nearplane.walk.sensitivity import DRAWN_BPW, Probe
from nearplane.walk.streams import StageInputs
from nearplane.walk.token_use import steps_by_use
from nearplane.walk.trace import trace_model
from nearplane.walk.walk import Walk
from tests.walk.tiny import FAMILIES, TOKENS

METHOD = ECLQ(bpw=9.5)


def probe(model, wanted=None, tokens=TOKENS) -> Probe:
    trace = trace_model(model, tokens)
    names = {layer.name for layer in trace.layers} if wanted is None else wanted
    return Probe(Placement(model), trace, METHOD, tokens, names)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_layer_is_probed_and_the_model_stays(family):
    model = family.model()
    before = copy.deepcopy(model.state_dict())
    sensitivities = probe(model).sensitivities()
    assert list(sensitivities) == [name for stage in family.stage_names(model) for name in stage]
    assert all(cause.divergence >= 0 and cause.bpw == DRAWN_BPW for cause in sensitivities.values())
    # attention that is nearly uniform does not feel an error of keys beyond float32's last bits
    felt = [name for name, cause in sensitivities.items() if cause.divergence > 0]
    assert len(felt) >= 0.8 * len(sensitivities)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_divergence_is_that_of_the_whole_model():
    """Against the model's own forward pass with the error put in; float32 sums agree to 1e-3."""
    model = FAMILIES["llama"].model()
    name = "model.layers.0.mlp.up_proj"
    found = probe(model, {name}).sensitivities()[name].divergence
    again = probe(model, {name})
    asked = TOKENS[-probe_file.SEQUENCES :, : probe_file.LENGTH]
    ((layer, error),) = again.errors(0, again.begun(TOKENS))
    with torch.no_grad():
        p = torch.log_softmax(model(input_ids=asked).logits, -1)
        layer.module.weight.data += error
        q = torch.log_softmax(model(input_ids=asked).logits, -1)
    positions = probe_file.compared_of(asked.shape[1])
    expected = (p.exp() * (p - q)).sum(-1)[:, positions].mean().item()
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_divergence_of_a_tied_embedding_is_that_of_the_whole_model():
    """In look-ups and in logits; float32 sums agree to 1e-3."""
    model = FAMILIES["llama_tied"].model()
    layer = Layer("model.embed_tokens", model.model.embed_tokens)
    asked = probe(model, {layer.name})
    asked.outside = [layer]
    found = asked.sensitivities()
    assert list(found) == [layer.name]
    again = probe(model, {layer.name})
    with torch.no_grad():
        whole = again.begun(TOKENS)
        for block in model.model.layers:
            whole.go_on(whole.call.run(block))
        inputs = sum_inputs(layer.shape[1], [StageInputs(whole.head_inputs())])
        weight = layer.weight().detach().float()
        basis = METHOD.basis(inputs.hessian)
        row_step = steps_by_use(layer, TOKENS, [whole])
        target = Target(weight, row_step=row_step)
        error = METHOD.drawn_error(target, basis, DRAWN_BPW, again.draws)
        p = torch.log_softmax(model(input_ids=again.compared_tokens).logits, -1)
        layer.stored.data = weight + error
        q = torch.log_softmax(model(input_ids=again.compared_tokens).logits, -1)
    positions = probe_file.compared_of(again.compared_tokens.shape[1])
    expected = (p.exp() * (p - q)).sum(-1)[:, positions].mean().item()
    assert found[layer.name].divergence == pytest.approx(expected, rel=1e-3)


def test_a_layer_that_matters_less_gets_fewer_bits():
    """A down-projection made ten times smaller does a hundredth of the harm: 3.3 bits less.

    Harm as large as these layers do grows more slowly than its square: two bits are asked for.
    """
    quiet, loud = (f"model.layers.{i}.mlp.down_proj" for i in (0, 1))
    above = []
    for size in (1, 0.1):
        model = FAMILIES["llama"].model()
        model.get_submodule(quiet).weight.data.mul_(size)
        walk = Walk(model, ECLQ(bpw=9.5), TOKENS).prepare()
        bits = walk.allocate()
        above.append(bits[loud] - bits[quiet])
        assert set(bits) == {layer.name for layer in walk.layers}
        mean = sum(bits[la.name] * la.weight().numel() for la in walk.layers)
        mean /= sum(la.weight().numel() for la in walk.layers)
        assert 9.5 - 1e-6 < mean <= 9.5
    assert above[1] - above[0] > 2


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_rates_do_not_depend_on_the_type_of_products(stored):
    """In 16 bits, roundings change the predictions more than the error of one layer does.

    Without output Hessians, which are of gradients in that type.
    """
    model, found = FAMILIES["llama_tied"].model().to(stored), []
    for dtype in (None, stored, torch.float32):
        placement = Placement(model, dtype=dtype)
        method = ECLQ(bpw=9.5, two_sided=False)
        found.append(Walk(model, method, TOKENS, placement=placement).prepare().allocate())
    assert found[0] == found[1] == found[2]
    assert model.dtype == stored and not placement.stored


@given(st.integers(1, 300))
def test_positions_are_few_and_evenly_spaced(length):
    places = list(range(length))[probe_file.compared_of(length)]
    assert min(length, probe_file.POSITIONS) / 2 <= len(places) <= probe_file.POSITIONS
    assert len(set(b - a for a, b in pairwise([-1, *places]))) == 1


def test_skipped_layers_are_not_probed():
    model = FAMILIES["llama"].model()
    assert list(probe(model, {"model.layers.1.mlp.up_proj"}).sensitivities()) == [
        "model.layers.1.mlp.up_proj"
    ]
    assert probe(model, set()).sensitivities() == {}

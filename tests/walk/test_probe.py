"""Probing: the model comes back as it was, and what matters more is found to do so."""

import copy

import pytest
import torch

from nearplane.methods import ECLQ
from nearplane.walk import probe as probe_file
from nearplane.walk.observe import observe
from nearplane.walk.probe import DRAWN_BPW, Probe
from nearplane.walk.walk import Walk
from nearplane.walk.weights import Weights
from tests.walk.tiny import FAMILIES, TOKENS

METHOD = ECLQ(bpw=9.5)


def probe(model, wanted=None, tokens=TOKENS) -> Probe:
    plan = observe(model, tokens)
    names = {layer.name for layer in plan.layers} if wanted is None else wanted
    return Probe(Weights(model), plan, METHOD, tokens, names)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_layer_is_probed_and_the_model_stays(family):
    model = family.model()
    before = copy.deepcopy(model.state_dict())
    causes = probe(model).causes()
    assert list(causes) == [name for stage in family.stage_names(model) for name in stage]
    assert all(cause.divergence >= 0 and cause.bpw == DRAWN_BPW for cause in causes.values())
    # attention that is nearly uniform does not feel an error of keys beyond float32's last bits
    felt = [name for name, cause in causes.items() if cause.divergence > 0]
    assert len(felt) >= 0.8 * len(causes)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_divergence_is_that_of_the_whole_model():
    """Against the model's own forward pass with the error put in; float32 sums agree to 1e-3."""
    model = FAMILIES["llama"].model()
    name = "model.layers.0.mlp.up_proj"
    found = probe(model, {name}).causes()[name].divergence
    again = probe(model, {name})
    asked = TOKENS[-probe_file.SEQUENCES :, : probe_file.LENGTH]
    call = again.calls_on(TOKENS)[0]
    ((layer, error),) = again.errors(0, call)
    with torch.no_grad():
        p = torch.log_softmax(model(input_ids=asked).logits, -1)
        layer.module.weight.data += error
        q = torch.log_softmax(model(input_ids=asked).logits, -1)
    positions = slice(probe_file.STRIDE - 1, None, probe_file.STRIDE)
    expected = (p.exp() * (p - q)).sum(-1)[:, positions].mean().item()
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_layer_that_matters_more_gets_more_bits():
    """A down-projection made ten times smaller does a hundredth of the harm: 3.3 bits less."""
    model = FAMILIES["llama"].model()
    quiet, loud = (f"model.layers.{i}.mlp.down_proj" for i in (0, 1))
    model.get_submodule(quiet).weight.data.mul_(0.1)
    walk = Walk(model, ECLQ(bpw=9.5), TOKENS)
    bits = walk.allocate()
    assert set(bits) == {layer.name for layer in walk.wanted}
    assert bits[loud] - bits[quiet] > 1.5
    mean = sum(bits[la.name] * la.weight().numel() for la in walk.wanted)
    mean /= sum(la.weight().numel() for la in walk.wanted)
    assert 9.5 - 1e-6 < mean <= 9.5


def test_skipped_layers_are_not_probed():
    model = FAMILIES["llama"].model()
    assert list(probe(model, {"model.layers.1.mlp.up_proj"}).causes()) == [
        "model.layers.1.mlp.up_proj"
    ]
    assert probe(model, set()).causes() == {}

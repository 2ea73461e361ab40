"""LoRA adapters of peft on a loaded checkpoint: they run, train, come back, and are not merged."""

import copy

import pytest
import torch

import nearplane as npl
from nearplane.export.linear import CompressedLinear
from nearplane.types import NearplaneError
from tests.export import tiny

peft = pytest.importorskip("peft")
TOKENS = torch.arange(12).view(2, 6) + 3
FAMILIES = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, written):
    return written(request.param).path, FAMILIES[request.param]


def adapted(path, targets, **options):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=targets, lora_alpha=16, **options)
    return peft.get_peft_model(npl.load(path), config)


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def test_a_new_adapter_changes_nothing_until_it_is_trained(case):
    path, targets = case
    plain, model = logits(npl.load(path)), adapted(path, targets)
    assert any(isinstance(m.get_base_layer(), CompressedLinear) for m in lora_layers(model))
    assert logits(model).equal(plain)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert not logits(model).equal(plain)
    with model.disable_adapter():
        assert logits(model).equal(plain)


def lora_layers(model):
    return [m for m in model.modules() if hasattr(m, "lora_A")]


def trained(path, targets):
    """Return a model with an adapter that does something."""
    return adapted(path, targets, init_lora_weights=False)


def test_an_adapter_is_saved_and_loaded_again(case, tmp_path):
    path, targets = case
    model = trained(path, targets)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(npl.load(path), tmp_path)
    torch.testing.assert_close(logits(again), expected)


def test_merging_is_refused_and_done_on_dequantized_weights(case, tmp_path):
    path, targets = case
    model = trained(path, targets)
    expected = logits(model)
    with pytest.raises(NearplaneError, match="dequantize=True"):
        copy.deepcopy(model).merge_and_unload()
    assert logits(model).equal(expected)
    model.save_pretrained(tmp_path)
    plain = peft.PeftModel.from_pretrained(npl.load(path, dequantize=True), tmp_path)
    merged = plain.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-3, atol=1e-3)


def test_what_would_change_the_weight_is_refused(case):
    path, targets = case
    with pytest.raises(NearplaneError, match="compressed"):
        adapted(path, targets, init_lora_weights="pissa")


def test_other_layers_are_peft_s_own():
    model = peft.get_peft_model(
        tiny.FAMILIES["llama"](), peft.LoraConfig(target_modules=["q_proj"])
    )
    assert {type(m).__module__ for m in lora_layers(model)} == {"peft.tuners.lora.layer"}

"""The output head: quantized last, unless it is to be kept."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import nearplane as npl
from nearplane.evaluate.verify import verify, verify_against
from nearplane.model.selection import Rules
from tests.cli.conftest import model_dir, nearplane, text
from tests.export.tiny import llama, llama_tied

__all__ = ["model_dir", "nearplane", "text"]  # fixtures

TOKENS = torch.randint(0, 61, (24, 32), generator=torch.Generator().manual_seed(0))


def test_the_head_is_quantized_on_the_quantized_models_hidden_states(tmp_path):
    source, out = tmp_path / "model", tmp_path / "out"
    llama().save_pretrained(source)
    keep = Rules(keep=("embedding",))
    method = npl.GPTQ(bits=4, group_size=16)
    report = npl.quantize(source, out, method, TOKENS, length=32, rules=keep)
    head = report["layers"][-1]
    assert head["name"] == "lm_head" and head["tokens"] == TOKENS.numel()
    assert 0 < head["relative_loss"] < 0.1
    loaded = npl.load(out)
    kept = AutoModelForCausalLM.from_pretrained(source).get_input_embeddings().weight
    assert torch.equal(loaded.get_input_embeddings().weight, kept)
    assert type(loaded.get_output_embeddings()).__name__ == "CompressedLinear"
    assert torch.isfinite(loaded(TOKENS[:1]).logits).all()
    assert not verify(str(out)).problems


@pytest.mark.parametrize("make", [llama, llama_tied], ids=["untied", "tied"])
def test_the_head_stays_if_asked(make, tmp_path):
    make().save_pretrained(tmp_path / "model")
    keep = Rules(keep=("head",))
    npl.quantize(
        tmp_path / "model", tmp_path / "out", npl.GPTQ(bits=4), TOKENS, length=32, rules=keep
    )
    loaded, original = npl.load(tmp_path / "out"), make()
    head = loaded.get_output_embeddings().weight
    assert torch.equal(head, original.get_output_embeddings().weight)


def test_tokens_of_another_model_are_refused(tmp_path):
    llama().save_pretrained(tmp_path / "model")
    with pytest.raises(npl.NearplaneError, match="token 61, but the model knows 0 .. 60"):
        npl.quantize(tmp_path / "model", tmp_path / "out", npl.RTN(), TOKENS + 1, length=32)
    assert not (tmp_path / "out").exists()


def test_verify_recomputes_the_heads_loss(nearplane, model_dir, text, tmp_path):
    out = tmp_path / "out"
    asked = ["--calibration", text, *"--method gptq --bits 4 --length 64".split()]
    assert nearplane("quantize", model_dir, out, *asked).exit_code == 0
    found = verify_against(str(out), str(model_dir))
    assert not found.problems
    assert any(
        "embed_tokens" in name
        for name in json.loads((out / "config.json").read_text())["quantization_config"]["layers"]
    )

"""A checkpoint computes what the dense model with the decoded values computes."""

import copy
import json
import shutil

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

import nearplane as npl
from nearplane import NearplaneError
from nearplane.codes import resident
from nearplane.export import checkpoint_reader
from nearplane.export.linear import CompressedLinear
from nearplane.export.load import load_tokenizer
from nearplane.export.transformers import NearplaneConfig, is_offloaded
from tests.export import tiny

families = pytest.mark.parametrize("family", tiny.FAMILIES)


def is_laid_out(model):
    """Whether kernels multiply, which add in another order than the decoded model does."""
    layers = [m for m in model.modules() if isinstance(m, CompressedLinear)]
    laid = {layer.form != resident.RECORD for layer in layers}
    assert len(laid) == 1
    return laid.pop()


def assert_same_logits(model, dense):
    """Equal to the last bit without kernels, but for Conv1D, which adds its bias elsewhere too.

    With them as near to the exact logits as the dense model is, which rounds as many sums.
    """
    got, expected = tiny.logits(model), tiny.logits(dense)
    if not is_laid_out(model) and dense.config.model_type != "gpt2":
        assert torch.equal(got, expected)
    else:
        assert_as_near(got, expected, exact_logits(dense))


def exact_logits(dense):
    return tiny.logits(copy.deepcopy(dense).double())


def assert_as_near(got, expected, exact):
    """Errors of as many roundings; their size, seen on a thousand numbers, varies by less."""
    error, usual = ((logits - exact).square().mean().sqrt() for logits in (got, expected))
    assert error <= 1.5 * usual


@families
def test_load_gives_the_logits_of_the_decoded_model(family, written):
    case = written(family)
    model = npl.load(case.path)
    replaced = [n for n, m in model.named_modules() if isinstance(m, CompressedLinear)]
    assert sorted(replaced) == sorted(tiny.linear_layers(case.dense))
    assert not model.training
    assert_same_logits(model, case.dense)


@families
def test_from_pretrained_gives_the_same(family, written):
    case = written(family)
    assert_same_logits(AutoModelForCausalLM.from_pretrained(case.path), case.dense)


@families
def test_save_pretrained_round_trip(family, written, tmp_path):
    case = written(family)
    npl.load(case.path).save_pretrained(tmp_path / "again")
    again = npl.load(tmp_path / "again")
    assert_same_logits(again, case.dense)
    old, new = (
        json.loads((path / "config.json").read_text()) for path in (case.path, tmp_path / "again")
    )
    assert new["quantization_config"] == old["quantization_config"]
    assert new.get("tie_word_embeddings") == old.get("tie_word_embeddings")
    assert checkpoint_reader.check_layers(tmp_path / "again") == []


@families
def test_dequantize_gives_plain_layers(family, written, tmp_path):
    case = written(family)
    model = npl.load(case.path, dequantize=True)
    assert not any(isinstance(m, CompressedLinear) for m in model.modules())
    for name, tensor in case.dense.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    model.save_pretrained(tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert not hasattr(plain.config, "quantization_config")
    assert torch.equal(tiny.logits(plain), tiny.logits(case.dense))


def test_dequantize_in_another_type(written):
    model = npl.load(written("qwen2").path).dequantize(dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert tiny.logits(model).dtype == torch.bfloat16


def test_generate(written):
    case = written("gpt2")
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    got = npl.load(case.path).generate(tiny.IDS, **options)
    assert torch.equal(got, case.dense.generate(tiny.IDS, **options))


def test_dtype_of_activations(written, tmp_path):
    case = written("llama")
    half = npl.load(case.path, dtype=torch.float16)
    assert tiny.logits(half).dtype == torch.float16
    assert half.model.layers[0].mlp.up_proj.record.dtype == torch.uint8
    case.dense.save_pretrained(tmp_path)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float16)
    assert_as_near(tiny.logits(half), tiny.logits(dense), exact_logits(case.dense))


def test_model_changes_type_after_loading(written):
    model = npl.load(written("qwen2").path).to(torch.bfloat16)
    assert model.model.layers[0].self_attn.q_proj.record.dtype == torch.uint8
    assert tiny.logits(model).dtype == torch.bfloat16


def test_base_model_reads_the_same_checkpoint(written):
    case = written("llama")
    base = AutoModel.from_pretrained(case.path)
    with torch.no_grad():
        got, expected, exact = (
            model(tiny.IDS).last_hidden_state
            for model in (base, case.dense.model, copy.deepcopy(case.dense.model).double())
        )
    assert_as_near(got, expected, exact)


def test_sharded_checkpoint(tmp_path):
    dense = tiny.write(tiny.llama(), tmp_path / "out", max_shard_bytes=8000)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 3
    assert_same_logits(npl.load(tmp_path / "out"), dense)


def test_transformers_trains_adapters_on_it(written):
    """Only these: no compressed weight is a parameter (test_adapters.py)."""
    model = npl.load(written("llama").path)
    assert model.hf_quantizer.is_trainable is True
    assert not any(name.endswith("_proj.weight") for name, _ in model.named_parameters())


def test_no_directory(tmp_path):
    with pytest.raises(NearplaneError, match="there is no directory"):
        npl.load(tmp_path / "absent")
    with pytest.raises(NearplaneError, match="there is no directory"):
        npl.load("./absent")


def test_hub_name_that_cannot_be_reached():
    with pytest.raises(NearplaneError, match="cannot be loaded"):
        npl.load("nobody/nothing")


def test_dense_checkpoint_is_none_of_ours(tmp_path):
    tiny.llama().save_pretrained(tmp_path)
    with pytest.raises(NearplaneError, match="not of a nearplane checkpoint"):
        npl.load(tmp_path)


def test_directory_of_an_interrupted_run(altered):
    (altered / "config.json").unlink()
    with pytest.raises(NearplaneError, match="holds no config.json"):
        npl.load(altered)
    partial = altered.rename(altered.parent / ".out.partial-host-1-ab")
    with pytest.raises(NearplaneError, match="interrupted run"):
        npl.load(partial)


def test_tokenizer_that_is_absent(written):
    with pytest.raises(NearplaneError, match="no tokenizer"):
        load_tokenizer(written("llama").path)


def edit_config(directory, edit):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    edit(config["quantization_config"], config)
    path.write_text(json.dumps(config))


def first_layer(quantization):
    return next(iter(quantization["layers"].values()))


@pytest.mark.parametrize("read", [npl.load, AutoModelForCausalLM.from_pretrained])
@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda q, c: q.update(format_version=2), "newer nearplane.*upgrade"),
        (lambda q, c: q.update(format_version="1"), "no format_version"),
        (lambda q, c: q.update(layers=["a"]), "lists no compressed layers"),
        (lambda q, c: first_layer(q).update(rows=-1), "above zero"),
        (lambda q, c: first_layer(q).update(bytes=True), "above zero"),
        (lambda q, c: first_layer(q).update(rows=31), "but the model has a Linear"),
        (lambda q, c: first_layer(q).update(bytes=31), "config.json says 31 bytes"),
        (lambda q, c: q["layers"].update(gone=first_layer(q)), "compresses 'gone'"),
        (lambda q, c: q["layers"].update({"": first_layer(q)}), "but the model has a"),
    ],
)
def test_config_that_lies(read, edit, sentence, altered):
    edit_config(altered, edit)
    with pytest.raises(NearplaneError, match=sentence):
        read(altered)


def test_compressed_head_must_not_be_tied(written, tmp_path):
    directory = shutil.copytree(written("llama_tied").path, tmp_path / "copy")
    head = {"bytes": 1, "rows": 61, "columns": 32}
    edit_config(directory, lambda q, c: q["layers"].update(lm_head=head))
    with pytest.raises(NearplaneError, match="tie_word_embeddings = false"):
        npl.load(directory)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_device_map(device_map, written):
    case = written("qwen2")
    model = AutoModelForCausalLM.from_pretrained(case.path, device_map=device_map)
    assert_same_logits(model, case.dense)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), None])
def test_layers_are_laid_out_once(device, written, monkeypatch):
    """And not on the CPU first, to be moved and laid out anew."""
    laid: list[nn.Module] = []
    lay_out = CompressedLinear.lay_out
    monkeypatch.setattr(CompressedLinear, "lay_out", lambda s: laid.append(s) or lay_out(s))
    model = npl.load(written("qwen2").path, device=device)
    compressed = [m for m in model.modules() if isinstance(m, CompressedLinear)]
    assert compressed and sorted(map(id, laid)) == sorted(map(id, compressed))


def test_layers_are_loaded_on_the_device_that_is_asked_for(written, monkeypatch):
    class Asked(Exception):
        pass

    def asked(*_, device_map, **__):
        raise Asked(str(device_map))

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", asked)
    with pytest.raises(NearplaneError, match=r"Asked|cuda") as refusal:
        npl.load(written("qwen2").path, device="cuda:1")
    assert "cuda" in str(refusal.value) and "index=1" in str(refusal.value)


def test_what_accelerate_moves_is_known():
    one, both = {"": "cpu"}, {"model": 0, "model.layers.1": "cpu", "lm_head": "disk"}
    assert not is_offloaded("model.layers.0.mlp.up_proj", one)
    assert not is_offloaded("model.layers.0.mlp.up_proj", both)
    assert is_offloaded("model.layers.1.mlp.up_proj", both) and is_offloaded("lm_head", both)
    # with nothing but a disk beside it, the CPU is where the model runs
    assert not is_offloaded("model.layers.1", {"model": "cpu", "lm_head": "disk"})


def test_unquantized_model_is_not_compressed_on_the_fly(tmp_path):
    tiny.llama().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pre-quantized"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=NearplaneConfig())

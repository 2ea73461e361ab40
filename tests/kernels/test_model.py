"""A whole model whose layers run on the kernels."""

import pytest
import torch
from safetensors.torch import load_file

import nearplane as npl
from nearplane.export import checkpoint_format as fmt
from nearplane.export.linear import CompressedLinear
from nearplane.kernels import cpu
from nearplane.kernels.cpu.layout import FORM
from tests.export import tiny

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the kernels were not built")
families = pytest.mark.parametrize("family", tiny.FAMILIES)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return family -> the directory of its checkpoint."""
    paths = {}

    def path(family):
        if family not in paths:
            paths[family] = tmp_path_factory.mktemp(family) / "out"
            tiny.write(tiny.FAMILIES[family](), paths[family])
        return paths[family]

    return path


def compressed(model) -> dict[str, CompressedLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, CompressedLinear)}


@families
def test_every_layer_is_laid_out(family, written):
    layers = compressed(npl.load(written(family)))
    assert layers and all(layer.form == FORM for layer in layers.values())


def assert_same_tokens(path):
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    model, plain = npl.load(path), npl.load(path, dequantize=True)
    got = model.generate(tiny.IDS, **options)
    assert torch.equal(got, plain.generate(tiny.IDS, **options))


@families
def test_generated_tokens_are_those_of_the_decoded_model(family, written):
    assert_same_tokens(written(family))


def test_generated_tokens_are_the_same_on_every_instruction_set(written, isa):
    assert_same_tokens(written("llama"))


@families
def test_saving_writes_the_same_records(family, written, tmp_path):
    npl.load(written(family)).save_pretrained(tmp_path / "again")
    old, new = (load_file(p / fmt.SINGLE) for p in (written(family), tmp_path / "again"))
    assert old.keys() == new.keys()
    records = [name for name in old if name.endswith(fmt.RECORD)]
    assert records and all(torch.equal(old[name], new[name]) for name in records)


def test_types_of_activations(written):
    for dtype in (torch.float16, torch.bfloat16):
        for model in (
            npl.load(written("qwen2"), dtype=dtype),
            npl.load(written("qwen2")).to(dtype),
        ):
            assert all(layer.form == FORM for layer in compressed(model).values())
            assert tiny.logits(model).dtype == dtype


def test_dequantizing_a_model_that_runs(written):
    model = npl.load(written("llama"))
    tiny.logits(model)
    plain = model.dequantize()
    assert not compressed(plain)
    expected = npl.load(written("llama"), dequantize=True)
    assert torch.equal(tiny.logits(plain), tiny.logits(expected))


def test_layers_that_are_offloaded_keep_their_records(written, tmp_path):
    """accelerate moves tensors by the names that the checkpoint has."""
    from transformers import AutoModelForCausalLM

    whole = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    device_map = whole | {"lm_head": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    model = AutoModelForCausalLM.from_pretrained(
        written("llama"), device_map=device_map, offload_folder=tmp_path
    )
    forms = {name: layer.form for name, layer in compressed(model).items()}
    offloaded = {form for name, form in forms.items() if name.startswith("model.layers.1.")}
    others = {form for name, form in forms.items() if not name.startswith("model.layers.1.")}
    assert offloaded == {"record"} and others == {FORM}
    for layer in compressed(model).values():
        layer.restore()
    expected = npl.load(written("llama"), dequantize=True)
    assert torch.equal(tiny.logits(model), tiny.logits(expected))

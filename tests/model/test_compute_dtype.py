"""Products in a type that the processor is fast at; here it is taken to be slow at 16 bits."""

import pytest
import torch
from safetensors import safe_open

import nearplane as npl
from nearplane.evaluate.verify import verify_against
from nearplane.model import compute_dtype
from nearplane.model.blocks import find_blocks
from nearplane.model.compute_dtype import arithmetic_for
from nearplane.types import NearplaneError
from nearplane.walk.placement import Placement
from tests.cli import tiny
from tests.families import zoo

SLOW = (torch.bfloat16, torch.float16)
METHOD = npl.HPTQ(bpw=6.0)


@pytest.fixture
def slow(monkeypatch):
    """A processor that emulates 16 bits."""
    monkeypatch.setattr(compute_dtype, "slowdown", lambda dtype: 10.0 if dtype in SLOW else 1.0)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same small model in bfloat16 and, widened, in float32; and a text."""
    root = tmp_path_factory.mktemp("arithmetic")
    for name, dtype in (("narrow", torch.bfloat16), ("wide", torch.float32)):
        tiny.write_model(root / name)
        tiny.model().to(torch.bfloat16).to(dtype).save_pretrained(root / name)
    tiny.write_text(root / "text.txt")
    return root


def quantized(places, name, out, **asked):
    sizes = {"sequences": 8, "length": 32}
    return npl.quantize(places / name, out, METHOD, places / "text.txt", **sizes, **asked)


def test_slow_types_are_widened_unless_asked_for(slow):
    for dtype in SLOW:
        assert arithmetic_for(dtype) == torch.float32
        assert arithmetic_for(dtype, device="cuda") == dtype
        assert arithmetic_for(dtype, "bfloat16") == torch.bfloat16
    assert arithmetic_for(torch.float32) == torch.float32
    with pytest.raises(NearplaneError, match="no arithmetic is called 'int8'"):
        arithmetic_for(torch.float32, "int8")


def test_fast_types_stay():
    for dtype in (*SLOW, torch.float32):
        assert arithmetic_for(dtype) == dtype


def test_a_narrow_model_is_rounded_as_a_wide_one(slow, places, tmp_path):
    """Weights are widened exactly, so that the records are the same, byte by byte."""
    for name in ("narrow", "wide"):
        report = quantized(places, name, tmp_path / name)
        assert report["recipe"]["arithmetic"] == "float32"
    records = [records_of(tmp_path / name) for name in ("narrow", "wide")]
    assert records[0].keys() == records[1].keys() and records[0]
    assert all(records[0][name].equal(records[1][name]) for name in records[0])


def records_of(directory):
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {n: file.get_tensor(n) for n in file.keys() if n.endswith(".record")}  # noqa: SIM118


def test_what_is_not_compressed_is_stored_as_it_was(slow, places, tmp_path):
    quantized(places, "narrow", tmp_path / "out")
    model = npl.load(tmp_path / "out")
    assert model.dtype == torch.float32
    model.save_pretrained(tmp_path / "again")
    for directory in ("out", "again"):
        with safe_open(tmp_path / directory / "model.safetensors", "pt") as file:
            assert file.get_tensor("model.norm.weight").dtype == torch.bfloat16
    assert npl.load(tmp_path / "out", dtype=torch.bfloat16).dtype == torch.bfloat16
    assert npl.load(tmp_path / "out", arithmetic="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_certificates_hold_for_the_stored_weights(places, tmp_path, asked):
    """Also where float32 weights are multiplied in bfloat16: what is rounded is what is stored."""
    for name in ("narrow", "wide"):
        out = tmp_path / name
        quantized(places, name, out, arithmetic=asked)
        found = verify_against(str(out), str(places / name), str(places / "text.txt"))
        assert not found.problems and len(found.checked) == 2


def test_what_is_changed_while_converted_stays_changed():
    model = tiny.model().to(torch.bfloat16)
    weights = Placement(model, dtype=torch.float32)
    layer = weights.blocks[0].mlp.down_proj
    before = layer.weight
    with weights.block(0):
        assert layer.weight.dtype == torch.float32
        assert weights.original(layer).dtype == torch.bfloat16
        layer.weight.data = torch.ones_like(layer.weight)
        assert weights.blocks[1].mlp.down_proj.weight.dtype == torch.bfloat16
    assert layer.weight is before and bool((layer.weight == 1).all())
    assert weights.blocks[0].mlp.up_proj.weight.dtype == torch.bfloat16
    with weights.outside():
        assert model.get_input_embeddings().weight.dtype == torch.float32
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


def test_what_is_wider_than_the_model_stays_wide():
    """A parameter of float32 in a model of bfloat16 is so on purpose, whatever is computed in."""
    model = tiny.model().to(torch.bfloat16)
    norm = find_blocks(model)[1][0].input_layernorm
    norm.weight.data = norm.weight.data.float()
    for dtype in (torch.bfloat16, torch.float16):
        with Placement(model, dtype=dtype).block(0):
            assert norm.weight.dtype == torch.float32


@pytest.mark.parametrize("family", ["gemma3_text", "vaultgemma", "xglm"])
def test_what_a_class_computes_is_computed_in_the_type_of_products(family):
    """A buffer that no file holds is what a model loaded in that type has, not a widened one."""
    model = zoo.tiny_model(family)
    narrow = type(model)._from_config(model.config, dtype=torch.bfloat16)
    wide = dict(type(model)._from_config(model.config, dtype=torch.float32).named_buffers())
    place = Placement(narrow, dtype=torch.float32)
    before = dict(narrow.named_buffers())
    with place.outside(), place.block(0), place.block(1):
        for name, buffer in narrow.named_buffers():
            assert buffer.dtype == wide[name].dtype and buffer.equal(wide[name])
    assert all(buffer is before[name] for name, buffer in narrow.named_buffers())
    assert any(not buffer.float().equal(wide[name].float()) for name, buffer in before.items())

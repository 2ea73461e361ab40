"""compressed-tensors and GPTQ checkpoints: what others read is what was chosen."""

import importlib.util
import json

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import pack_to_int32
from compressed_tensors.quantization import QuantizationConfig
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import nearplane as npl
from nearplane.export.formats import export
from nearplane.export.formats.compressed_tensors import packed
from nearplane.methods import ECLQ, GPTQ, HPTQ, RTN, SSQR
from nearplane.model.selection import Rules
from nearplane.pipeline import quantize
from nearplane.types import NearplaneError
from tests.bench.test_benches import BENCH
from tests.export.test_gguf import TOKENS, model_of

DECODE = importlib.util.spec_from_file_location("decode", BENCH / "peers" / "decode.py")
decode = importlib.util.module_from_spec(DECODE)
DECODE.loader.exec_module(decode)
KEEP = Rules(keep=("embedding",))


@given(st.integers(2, 8), st.integers(1, 4), st.integers(1, 70), st.integers(0, 2**32))
def test_integers_are_packed_as_the_package_does(bits, rows, columns, seed):
    draws = torch.Generator().manual_seed(seed)
    half = 1 << bits - 1
    code = torch.randint(-half, half, (rows, columns), generator=draws, dtype=torch.int32)
    assert packed(code, bits).equal(pack_to_int32(code.to(torch.int8), bits))


@pytest.mark.parametrize(
    "method",
    [RTN(bits=4, group_size=32), GPTQ(bits=3, group_size=16), HPTQ(bpw=3.0)],
    ids=lambda method: method.name,
)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_transformers_reads_the_same_model(family, method, tmp_path):
    model_of(family, tmp_path / "model")
    quantize(tmp_path / "model", tmp_path / "out", method, TOKENS, rules=KEEP)
    out = export(tmp_path / "out", tmp_path / "packed", "compressed-tensors")
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    (group,) = QuantizationConfig.model_validate(settings).config_groups.values()
    assert group.weights.num_bits == getattr(method, "bits", group.weights.num_bits)
    expected = npl.load(tmp_path / "out", dequantize=True, dtype=torch.float32)
    found = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        assert found(TOKENS).logits.equal(expected(TOKENS).logits)


@pytest.mark.parametrize(
    ("method", "rules", "reason"),
    [
        (RTN(bits=4, group_size=32), Rules(), "holds linear layers; .* --keep embedding"),
        (ECLQ(bpw=5.0), KEEP, "a step of every column has no place there; .* --method gptq"),
        (SSQR(bits=4, group_size=32, outliers=0.1), KEEP, "outliers have no place there"),
        (RTN(bits=4, group_size=24), KEEP, "groups of 24 do not divide its 64 columns"),
        (HPTQ(bpw=11.0), KEEP, "more than 8 bits; quantize with fewer bits"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_it_does_not_hold_is_refused(method, rules, reason, tmp_path):
    model_of("llama", tmp_path / "model")
    quantize(tmp_path / "model", tmp_path / "out", method, TOKENS, rules=rules)
    with pytest.raises(NearplaneError, match=reason):
        export(tmp_path / "out", tmp_path / "packed", "compressed-tensors")
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize(
    ("family", "reason"),
    [("gpt2", "holds nn.Linear layers, which gpt2 lacks"), ("mixtral", "--skip experts")],
)
def test_other_kinds_of_layers_are_refused(family, reason, tmp_path):
    model_of(family, tmp_path / "model")
    quantize(tmp_path / "model", tmp_path / "out", RTN(bits=4), TOKENS, rules=KEEP)
    with pytest.raises(NearplaneError, match=reason):
        export(tmp_path / "out", tmp_path / "packed", "compressed-tensors")


@pytest.mark.parametrize(
    "method",
    [RTN(bits=4, group_size=32), GPTQ(bits=3, group_size=16), RTN(bits=8, group_size=96)],
    ids=lambda method: f"{method.name}-{method.bits}",
)
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq_files_are_decoded_to_the_same_weights(version, method, tmp_path):
    """By the decoder with which benches read GPTQModel's own files."""
    model_of("llama", tmp_path / "model")
    quantize(tmp_path / "model", tmp_path / "out", method, TOKENS, rules=KEEP)
    out = export(tmp_path / "out", tmp_path / "packed", version)
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    assert settings["checkpoint_format"] == version
    # no row has more than 96 columns
    wanted = (8, -1) if method.bits == 8 else (4, method.group_size)
    assert (settings["bits"], settings["group_size"]) == wanted
    found = decode.decode(out)
    expected = npl.load(tmp_path / "out", dequantize=True, dtype=torch.float32).state_dict()
    assert len(found) >= 20 and all(found[name].equal(expected[name]) for name in found)

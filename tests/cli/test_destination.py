"""`quantize --for`: files of other programs, complete or not there; refusals before the work."""

import json

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from nearplane.model.open_model import open_model
from nearplane.types import NearplaneError
from tests.cli import tiny
from tests.export.test_gguf import model_of

SHORT = ("--sequences", 4, "--length", 32)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A tiny Llama, two of whose layers a block have rows of 256 columns."""
    directory = tmp_path_factory.mktemp("wide")
    model_of("llama", directory, intermediate=256)
    return directory


def types_of(out):
    found = gguf.GGUFReader(out / "model.gguf").tensors
    return {tensor.name: tensor.tensor_type.name for tensor in found if len(tensor.shape) > 1}


@pytest.mark.parametrize(
    ("word", "narrow", "broad"),
    [
        ("gguf:Q4_K", "Q5_0", "Q4_K"),
        ("gguf:Q3_K", "IQ4_NL", "Q3_K"),
        ("gguf:IQ4_XS", "IQ4_NL", "IQ4_XS"),
        ("gguf:Q6_K", "Q8_0", "Q6_K"),
        ("gguf:Q5_0", "Q5_0", "Q5_0"),
        ("gguf:Q5_K", "Q5_1", "Q5_K"),
        ("gguf:Q4_1", "Q4_1", "Q4_1"),
    ],
)
def test_a_gguf_file_of_a_type(word, narrow, broad, nearplane, wide, text, tmp_path):
    """Rows that 256 does not divide get llama.cpp's other type, and it is said."""
    out = tmp_path / "out"
    done = nearplane("quantize", wide, out, "--for", word, "--calibration", text, *SHORT)
    assert done.exit_code == 0, done.output
    assert "256 does not divide the columns of 14 of 16 layers" in done.output
    types = types_of(out)
    assert types.pop("blk.0.ffn_down.weight") == types.pop("blk.1.ffn_down.weight") == broad
    assert set(types.values()) == {narrow}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    model = open_model(str(out / "model.gguf")).model
    assert torch.isfinite(model(torch.arange(3, 20)[None]).logits).all()


def test_a_gguf_file_of_a_size(nearplane, wide, text, tmp_path):
    """No larger than asked, more than nine tenths of it, and of several types."""
    for size in (150_000, 170_000):
        out = tmp_path / str(size)
        words = ["--for", "gguf", "--size", f"{size}B", "--calibration", text, *SHORT]
        done = nearplane("quantize", wide, out, *words)
        assert done.exit_code == 0, done.output
        assert 0.9 * size < (out / "model.gguf").stat().st_size <= size
        assert len(set(types_of(out).values())) > 1


@pytest.mark.parametrize("word", ["gptq", "compressed-tensors:3", "vllm:8"])
def test_packed_formats(word, nearplane, wide, text, tmp_path):
    """The largest groups that divide all rows; embedding and head stay as they are."""
    out = tmp_path / "out"
    done = nearplane("quantize", wide, out, "--for", word, "--calibration", text, *SHORT)
    assert done.exit_code == 0, done.output
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    if word == "gptq":
        assert (settings["bits"], settings["group_size"]) == (4, 64)
    else:
        weights = settings["config_groups"]["group_0"]["weights"]
        assert (weights["num_bits"], weights["group_size"]) == (int(word[-1]), 64)
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        assert torch.isfinite(model(torch.arange(3, 20)[None]).logits).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--for", "gguf"], "--for gguf: needs --size, or one of Q2_K"),
        (["--for", "gguf:Q9"], "'Q9' is no type: there are Q2_K"),
        (["--for", "gguf:Q4_K", "--size", "1MB"], "not both"),
        (["--for", "gguf", "--size", "20kB"], "the smallest types that divide this model's rows"),
        (["--for", "gguf", "--size", "0"], "vocabulary and metadata of the file take 0.0"),
        (["--for", "gguf:Q4_K", "--method", "rtn"], "leave out --method"),
        (["--for", "gptq:3"], "takes widths of 4, 8 bits, not '3'"),
        (["--for", "vllm", "--size", "3MB"], "has one size: leave out --size"),
        (["--for", "gptq", "--group-size", 24], "groups of 24 do not divide its 64 columns"),
        (["--for", "gptq:4", "--bits", 8], "leave out --bits 8"),
        (["--for", "gguf:Q4_K", "--mixed", 6], "--for gguf chooses --mixed: leave out --mixed"),
        (["--for", "gguf:Q4_K_M", "--type", "Q8_0"], "leave out --type"),
        (["--for", "gptq:²"], "takes widths of 4, 8 bits, not '²'"),
        (["--for", "mlx"], "--for 'mlx' is no format; there are gguf"),
    ],
)
def test_what_cannot_be_is_refused_at_once(words, said, nearplane, wide, text, tmp_path):
    done = nearplane("quantize", wide, tmp_path / "out", "--calibration", text, *words, *SHORT)
    assert done.exit_code == 1 and said in " ".join(done.output.split())
    assert not list(tmp_path.iterdir())


# tied, with a name for no head; with routers; with transposed layers
@pytest.mark.parametrize("family", ["gemma2", "qwen3_moe", "gpt2"])
def test_families_keep_to_their_size(family, nearplane, text, tmp_path):
    """Stored in bfloat16, where norms and routers become float32."""
    model = model_of(family, tmp_path / "model", intermediate=256)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    size = 80_000 + int(6.5 / 8 * sum(p.numel() for p in model.parameters()))
    words = ["--for", "gguf", "--size", f"{size}B", "--calibration", text, *SHORT]
    done = nearplane("quantize", tmp_path / "model", tmp_path / "out", *words)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "model.gguf").stat().st_size <= size
    assert "more than --size" not in done.output


def test_an_export_that_failed_goes_on(nearplane, wide, text, tmp_path, monkeypatch):
    """The checkpoint stays, and it is said how; --resume exports it."""
    words = ["--for", "gguf:Q4_0", "--calibration", text, *SHORT]

    def refused(*_):
        raise NearplaneError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("nearplane.export.formats.export", refused)
        done = nearplane("quantize", wide, tmp_path / "out", *words)
    made = tmp_path / "out.nearplane"
    assert done.exit_code == 1 and f"nearplane export {made}" in done.output and made.is_dir()
    done = nearplane("quantize", wide, tmp_path / "out", *words)
    assert done.exit_code == 1 and "--resume exports it" in done.output
    done = nearplane("quantize", wide, tmp_path / "out", *words, "--resume")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "model.gguf").exists() and not made.exists()


def test_a_family_that_llama_cpp_lacks_is_refused_at_once(nearplane, text, tmp_path):
    model = tiny.write_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "olmo", "architectures": ["OlmoForCausalLM"]}
    (model / "config.json").write_text(json.dumps(config))
    words = ["--for", "gguf:Q4_0", "--calibration", text]
    done = nearplane("quantize", model, tmp_path / "out", *words, *SHORT)
    assert done.exit_code == 1 and "a GGUF file of olmo models cannot be written" in done.output
    assert not (tmp_path / "out").exists()


def test_a_dry_run_makes_nothing(nearplane, wide, text, tmp_path):
    words = ["--for", "gguf:Q4_0", "--calibration", text, *SHORT, "--dry-run"]
    done = nearplane("quantize", wide, tmp_path / "out", *words)
    assert done.exit_code == 0 and not list(tmp_path.iterdir()), done.output


def test_weights_that_need_other_steps_than_float16_s_are_refused_at_once(
    nearplane, text, tmp_path
):
    """A tiny row is none: its steps are float16's least numbers."""
    model = model_of("llama", tmp_path / "model")
    down, up = model.model.layers[0].mlp.down_proj.weight, model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        down[:8] *= torch.logspace(-3, -10, 8)[:, None]
    model.save_pretrained(tmp_path / "model")
    words = ("--calibration", text, *SHORT)
    out = tmp_path / "out"
    done = nearplane("quantize", tmp_path / "model", out, "--for", "gptq:8", *words)
    assert done.exit_code == 0, done.output
    with torch.no_grad():
        up *= 1e-8
    model.save_pretrained(tmp_path / "model")
    for word in ("gptq", "gguf:Q4_0"):
        done = nearplane("quantize", tmp_path / "model", tmp_path / "no", "--for", word, *words)
        assert done.exit_code == 1 and "mlp.up_proj: the largest weight is " in done.output
        assert "float16, in which g" in done.output and "(--skip up_proj)" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]

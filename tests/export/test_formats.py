"""Every format that a checkpoint is exported to; a new one is tried by its registration alone."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import nearplane as npl
from nearplane.export.checkpoint_reader import Checkpoint
from nearplane.export.formats import FORMATS, Format, export
from nearplane.types import NearplaneError
from tests.cli.conftest import checkpoint, grouped, model_dir, nearplane, text
from tests.export import tiny

__all__ = ["checkpoint", "grouped", "model_dir", "nearplane", "text"]

every_format = pytest.mark.parametrize("name", FORMATS)


@every_format
def test_the_command_line_writes_it(name, grouped, nearplane, tmp_path):
    done = nearplane("export", grouped, tmp_path / "out", "--to", name)
    assert done.exit_code == 0, done.output
    assert FORMATS[name].title in done.output and FORMATS[name].title in nearplane("formats").output
    # the tokenizer goes along
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {path.name for path in grouped.glob("tokenizer*")} <= names
    assert not list(tmp_path.glob(".*"))


@every_format
def test_nothing_is_left_of_what_fails(name, grouped, tmp_path, monkeypatch):
    def fails(self, checkpoint, out, trust_remote_code, says):
        (out / "half").write_text("written")
        raise NearplaneError("the disk is gone")

    monkeypatch.setattr(type(FORMATS[name]), "write", fails)
    with pytest.raises(NearplaneError, match="the disk is gone"):
        export(grouped, tmp_path / "out", name)
    assert not list(tmp_path.iterdir())


def test_unknown_formats_and_places_are_refused(checkpoint, model_dir, tmp_path):
    with pytest.raises(NearplaneError, match="no format is called 'gif'; there are .*transformers"):
        export(checkpoint, tmp_path / "out", "gif")
    with pytest.raises(NearplaneError, match="is not of a nearplane checkpoint"):
        export(model_dir, tmp_path / "out", "transformers")
    with pytest.raises(NearplaneError, match="is not empty"):
        export(checkpoint, checkpoint, "transformers")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_reads_the_decoded_weights_without_nearplane(dtype, tmp_path):
    model = tiny.qwen2().to(dtype)
    tiny.write(model, tmp_path / "checkpoint")
    out = export(tmp_path / "checkpoint", tmp_path / "out", "transformers")
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config
    tensors = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    plain = AutoModelForCausalLM.from_pretrained(out)
    expected = npl.load(tmp_path / "checkpoint", dequantize=True, dtype=dtype)
    assert torch.equal(tiny.logits(plain), tiny.logits(expected))


def test_the_tokenizer_is_the_same(checkpoint, tmp_path):
    out = export(checkpoint, tmp_path / "out", "transformers")
    both = [
        AutoTokenizer.from_pretrained(place)("the nearest plane") for place in (checkpoint, out)
    ]
    assert both[0].input_ids == both[1].input_ids


def test_a_format_is_a_class(checkpoint, tmp_path, monkeypatch):
    """What docs and CONTRIBUTING promise: a file with a class is all."""
    monkeypatch.setattr("nearplane.export.formats.format.FORMATS", FORMATS)

    class Names(Format):
        name, title, holds = "names", "the names of the layers, one a line", "layers"

        def check(self, checkpoint: Checkpoint) -> None:
            if not checkpoint.layers:
                raise NearplaneError("there is no layer to name")

        def write(self, checkpoint: Checkpoint, out, trust_remote_code: bool, says) -> None:
            (out / "names.txt").write_text("\n".join(checkpoint.layers))

    try:
        out = export(checkpoint, tmp_path / "out", "names")
        assert "q_proj" in (out / "names.txt").read_text()
        shutil.rmtree(out)
    finally:
        del FORMATS["names"]

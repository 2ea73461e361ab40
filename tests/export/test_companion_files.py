"""The files that go along with a model, and those that are named as left behind."""

import pytest

from nearplane.export.checkpoint_format import json_bytes, special_floats
from nearplane.export.companion_files import companion_files, files_left_behind
from nearplane.types import NearplaneError

COPIED = (
    *("tokenizer.json", "preprocessor_config.json", "tekken.json", "chat_template.jinja"),
    *("generation_config.json", "merges.txt", "tokenizer.model", "LICENSE", "modeling_own.py"),
    *("SYSTEM_PROMPT.txt", "vocab.txt"),
)
OWN = ("config.json", "model.safetensors.index.json", "report.json")
WEIGHTS = ("model-00001-of-00002.safetensors", "pytorch_model.bin", "model.onnx")
LEFT = ("README.md", "notes.txt", "training")


def test_every_file_is_copied_or_named(tmp_path):
    for name in (*COPIED, *OWN, *WEIGHTS, *LEFT[:2], ".gitattributes"):
        (tmp_path / name).write_text("{}")
    (tmp_path / LEFT[2]).mkdir()
    (tmp_path / LEFT[2] / "state.pt").write_text("{}")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool.jinja").write_text("a")
    inside = "additional_chat_templates/tool.jinja"
    assert set(companion_files(tmp_path)) == {*COPIED, inside}
    assert files_left_behind(tmp_path, companion_files(tmp_path)) == sorted(LEFT)
    assert files_left_behind("owner/model", ()) == []


def test_names_that_no_checkpoint_holds_are_refused_at_once(tmp_path):
    (tmp_path / "a\\b.json").write_text("{}")
    with pytest.raises(NearplaneError, match="a name that a checkpoint cannot hold"):
        companion_files(tmp_path)


def test_infinities_are_written_as_transformers_does():
    config = {"limit": (0.0, float("inf")), "deep": [{"a": float("-inf")}], "n": 1}
    written = special_floats(config)
    assert written["limit"] == [0.0, {"__float__": "Infinity"}] and written["n"] == 1
    assert written["deep"] == [{"a": {"__float__": "-Infinity"}}]
    assert b"Infinity" in json_bytes(written)

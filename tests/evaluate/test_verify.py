"""A checkpoint that is as it was made passes; one that lies about itself does not."""

import json
import shutil
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file

from nearplane.evaluate.verify import contradictions, verify, verify_against
from nearplane.export import checksums
from nearplane.model.block_loading import OnDisk
from nearplane.types import NearplaneError
from nearplane.walk.hidden_states import StatesInFile
from tests.cli import tiny


@pytest.fixture
def altered(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


def edit_certificate(directory, **changes):
    """Change the certificate of one layer and sign the directory again."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    layers = config["quantization_config"]["layers"]
    name = sorted(layers)[-1]
    layers[name] |= changes
    path.write_text(json.dumps(config))
    hashes = {n: checksums.file_hash(directory / n) for n in checksums.listed_files(directory)}
    (directory / "SHA256SUMS").write_bytes(checksums.sums_text(hashes))
    return name


def test_a_good_checkpoint_passes(checkpoint, model_dir):
    found = verify_against(str(checkpoint), str(model_dir), found=verify(str(checkpoint)))
    assert not found.problems
    assert any("calibration losses recomputed, 15 layers" in said for said in found.checked)


def test_a_calibration_that_moved_is_found_where_it_is_said_to_be(checkpoint, model_dir, tmp_path):
    moved = tiny.write_text(tmp_path / "moved.txt")
    found = verify_against(str(checkpoint), str(model_dir), moved)
    assert not found.problems and "losses recomputed" in found.checked[-1]


def test_another_calibration_is_not_compared_with(checkpoint, model_dir, tmp_path):
    other = tiny.write_text(tmp_path / "other.txt", tiny.TEXT[500:])
    with pytest.raises(NearplaneError, match="fingerprints differ"):
        verify_against(str(checkpoint), str(model_dir), other)


def test_a_flipped_bit_is_found(altered):
    path = altered / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    assert any("model.safetensors" in problem for problem in verify(str(altered)).problems)


def test_another_model_is_found(checkpoint, model_dir, tmp_path):
    other = shutil.copytree(model_dir, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name] + 0.01 * torch.randn_like(tensors[name])
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    problems = verify_against(str(checkpoint), str(other)).problems
    assert any(problem.startswith("model.layers.1.mlp.up_proj: ‖weight") for problem in problems)
    assert any("model.layers.1.mlp.up_proj: the loss is" in problem for problem in problems)


def test_a_false_loss_is_found(altered, model_dir):
    entry = json.loads((altered / "config.json").read_text())["quantization_config"]["layers"]
    name = sorted(entry)[-1]
    edit_certificate(altered, loss=entry[name]["loss"] * 0.9)
    assert not verify(str(altered)).problems
    problems = verify_against(str(altered), str(model_dir)).problems
    assert [problem.split(":")[0] for problem in problems] == [name]


GOOD = {"loss": 1.0, "damped_loss": 1.1, "energy": 9.0, "weight_error": 2.0, "bound": 3.0}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"bound": 1.0}, "above its bound"),
        ({"loss": 1.2}, "above damped loss"),
        ({"loss": None}, "loss is None"),
        ({"energy": float("nan")}, "energy is nan"),
        ({"weight_error": -1.0}, "weight_error is -1.0"),
        ({"bound": None}, "nothing says why"),
    ],
)
def test_what_cannot_be_true_is_doubted(change, said):
    assert not list(contradictions("layer", GOOD))
    assert said in " ".join(contradictions("layer", GOOD | change))


def test_a_broken_bound_is_found_in_the_file(altered):
    name = edit_certificate(altered, bound=1e-9)
    assert any(p.startswith(name) and "bound" in p for p in verify(str(altered)).problems)


def test_against_the_model_one_block_is_in_memory_at_a_time(checkpoint, model_dir, monkeypatch):
    """What was quantized within some memory can be verified within it."""
    most, kept, loaded = [], [], OnDisk.loaded
    append = StatesInFile.append

    @contextmanager
    def counted(self, index, read=None):
        with loaded(self, index, read):
            most.append(sum(not any(p.is_meta for p in b.parameters()) for b in self.blocks))
            yield

    monkeypatch.setattr(OnDisk, "loaded", counted)
    monkeypatch.setattr(StatesInFile, "append", lambda s, t: kept.append(t.shape) or append(s, t))
    found = verify_against(str(checkpoint), str(model_dir))
    assert not found.problems and any("losses recomputed" in said for said in found.checked)
    assert most and set(most) == {1}
    assert kept

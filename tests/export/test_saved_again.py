"""What `save_pretrained` writes over a checkpoint is as its sums say."""

import copy
import pickle

import pytest

import nearplane as npl
from nearplane.evaluate.verify import verify
from nearplane.export.checksums import SUMS


@pytest.fixture(params=["itself", "copied", "pickled"])
def loaded(request, altered):
    """A loaded model, and the directory that it was loaded from."""
    model = npl.load(altered)
    if request.param == "copied":
        model = copy.deepcopy(model)
    if request.param == "pickled":
        model = pickle.loads(pickle.dumps(model))
    return model, altered


def test_in_place_the_sums_are_new_ones(loaded):
    model, path = loaded
    (path / "notes.txt").write_text("changed since")
    assert verify(str(path)).problems
    model.save_pretrained(path)
    assert not verify(str(path)).problems and (path / SUMS).exists()


def test_elsewhere_there_are_none_and_verify_says_so(loaded, tmp_path):
    model, _ = loaded
    model.save_pretrained(tmp_path / "again", max_shard_size="10KB")
    found = verify(str(tmp_path / "again"))
    assert not found.problems and any("not checked: the bytes" in s for s in found.checked)


def test_a_dequantized_model_leaves_no_sums(altered):
    npl.load(altered, dequantize=True).save_pretrained(altered)
    assert not (altered / SUMS).exists()

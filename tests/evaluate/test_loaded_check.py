"""A checkpoint appears only if, loaded again, it computes what the walk did."""

import importlib
from dataclasses import replace

import pytest
import torch

from nearplane.evaluate.loaded_check import typical_difference
from nearplane.export.linear import CompressedLinear
from nearplane.methods import HPTQ
from nearplane.plan import offload
from nearplane.types import NearplaneError
from tests.export import tiny
from tests.walk.tiny import TOKENS

PIPELINE = importlib.import_module("nearplane.pipeline")  # npl.quantize is its function
METHOD = HPTQ(bpw=9.5)


@pytest.fixture
def source(tmp_path):
    tiny.llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


FAULTS = {
    "a scale": lambda layer, x, forward: forward(layer, x) * 1.2,
    "an error": lambda layer, x, forward: layer.no_such_thing,
    "another shape": lambda layer, x, forward: forward(layer, x)[..., :-1],
}


@pytest.fixture(params=[False, True], ids=["whole", "by blocks"])
def by_blocks(request, monkeypatch) -> bool:
    """Whether a run has one block in memory at a time."""
    chosen = offload.choose_offload
    monkeypatch.setattr(
        offload,
        "choose_offload",
        lambda *a, **k: replace(chosen(*a, **k), by_blocks=request.param),
    )
    return request.param


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_does_not_run_as_the_walk_did_is_none(fault, by_blocks, source, tmp_path):
    forward, broken = CompressedLinear.forward, FAULTS[fault]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompressedLinear, "forward", lambda s, x: broken(s, x, forward))
        with pytest.raises(NearplaneError, match="checkpoint that was made"):
            PIPELINE.quantize(source, tmp_path / "out", METHOD, TOKENS)
    assert not (tmp_path / "out").exists()
    PIPELINE.quantize(source, tmp_path / "out", METHOD, TOKENS, resume=True)
    assert (tmp_path / "out").exists()


def test_most_tokens_decide():
    """One token of five may be routed elsewhere; three may not."""
    expected = torch.randn(1, 5, 8)
    found = expected.clone()
    found[0, 0] = 0
    assert typical_difference(found, expected) == 0
    found[0, 1:3] = 0
    assert typical_difference(found, expected) == 1

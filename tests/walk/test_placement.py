"""Where a walk's tensors live is said by its placement, and by nothing else."""

import copy

import pytest
import torch
from torch import Tensor, nn

from nearplane.methods import ECLQ, HPTQ, RTN, Method
from nearplane.walk import walk as walk_file
from nearplane.walk.placement import ActivationLimits, Placement
from nearplane.walk.walk import Walk
from tests.walk import moe
from tests.walk.tiny import FAMILIES, TOKENS, in_blocks

CASES = {
    "llama eclq": (FAMILIES["llama"].model, ECLQ(bpw=7.5)),
    "gpt2 hptq": (FAMILIES["gpt2"].model, HPTQ(bpw=7.5)),
    "qwen3_moe rtn": (moe.FAMILIES["qwen3_moe"].model, RTN(bits=4, group_size=16)),
}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(walk_file, "BATCH_TOKENS", 48)


def records(model: nn.Module, method: Method, limits: ActivationLimits) -> dict[str, Tensor]:
    place = Placement(model, limits=limits)
    walk = Walk(model, method, TOKENS, in_blocks(), placement=place).prepare()
    if method.allocates:
        walk.allocate()
    return {layer.name: weight.record for layer, weight, _ in walk}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("in_file", [False, True])
def test_nothing_is_created_where_nobody_said(case, in_file, tmp_path):
    """With torch's default device set to one that holds no numbers."""
    make, method = CASES[case]
    limits, model = ActivationLimits(1, tmp_path if in_file else None), make()
    expected = records(copy.deepcopy(model), method, limits)
    with torch.device("meta"):
        found = records(model, method, limits)
    assert list(found) == list(expected)
    assert all(found[name].equal(record) for name, record in expected.items())

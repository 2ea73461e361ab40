"""Where weights and hidden states are, and what waits in memory, changes no bit of the result."""

import copy
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nearplane.methods import ECLQ, GPTQ, HPTQ
from nearplane.model.block_loading import InMemory, OnDisk, fill_, stand_alone
from nearplane.model.open_model import open_model
from nearplane.model.selection import Rules
from nearplane.types import NearplaneError
from nearplane.walk import walk as walk_file
from nearplane.walk.capture import Call, PausedRun, RepeatedRun
from nearplane.walk.forward_pass import share_memory_
from nearplane.walk.hidden_states import CPU, StatesInFile, StatesOnHost, kept, rows_of
from nearplane.walk.placement import ActivationLimits, Placement
from nearplane.walk.walk import Walk
from tests.walk import moe
from tests.walk.tiny import FAMILIES, TOKENS, Blocks, Residual, linear

METHODS = [HPTQ(bpw=9.5), GPTQ(bits=4, group_size=16), ECLQ(bpw=9.5)]
MODELS = {name: family.model for name, family in (FAMILIES | moe.FAMILIES).items()}
FEW = {"gemma3": METHODS[:2], "gpt2": METHODS[:1], "mixtral": METHODS[:1]}
CASES = [
    pytest.param(name, method, id=f"{name}-{method.name}", marks=marks)
    for name in MODELS
    for method in METHODS
    for marks in [() if method in FEW.get(name, []) else pytest.mark.long]
]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(walk_file, "BATCH_TOKENS", 24)


def results(model: nn.Module, method, **options) -> dict[str, Tensor]:
    rules, place = Rules(skip=("block_sparse_moe.gate",)), Placement(model, **options)
    walk = Walk(model, method, TOKENS, rules, placement=place).prepare()
    if method.allocates:
        walk.allocate()
    return {layer.name: weight.record for layer, weight, _ in walk}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_nothing_depends_on_the_activation_limits(name, method, tmp_path):
    model = MODELS[name]()
    expected = results(copy.deepcopy(model), method)
    for paused, directory in ((0, tmp_path), (2, None)):
        found = results(copy.deepcopy(model), method, limits=ActivationLimits(paused, directory))
        assert same(expected, found), (paused, directory)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_nothing_depends_on_where_blocks_lie(name, method, tmp_path):
    """Two blocks are never in memory together, and none at the end."""
    model = MODELS[name]()
    expected = results(copy.deepcopy(model), method)
    model.save_pretrained(tmp_path)
    source = open_model(tmp_path, by_blocks=True)
    loader = source.loader
    assert isinstance(loader, OnDisk)
    load, most = loader.load, 0

    def counted(index: int) -> nn.Module:
        nonlocal most
        most = max(most, sum(not all(p.is_meta for p in b.parameters()) for b in loader.blocks))
        return load(index)

    counting = OnDisk(loader.blocks, counted)
    found = results(source.model, method, loader=counting, limits=ActivationLimits(1, tmp_path))
    assert same(expected, found)
    assert most == 0
    assert all(parameter.is_meta for parameter in loader.blocks.parameters())


class Twice(nn.Module):
    """A block that calls a layer two times, the second time on what the first one gave."""

    def __init__(self):
        super().__init__()
        self.a, self.b = linear(), linear()

    def forward(self, hidden_states, **_):
        return hidden_states + self.b(self.a(self.a(hidden_states)))


@pytest.mark.parametrize("method", METHODS[:1] + [ECLQ(7.5, allocate=False)], ids=lambda m: m.name)
def test_layers_that_are_called_twice(method):
    model = Blocks(Twice(), Residual(a=linear(), b=linear()))
    expected = results(copy.deepcopy(model), method)
    for paused in (0, 2):
        assert same(
            expected, results(copy.deepcopy(model), method, limits=ActivationLimits(paused))
        )


def test_a_repeated_run_is_a_paused_run_that_holds_nothing():
    block = Residual(a=linear(), b=linear(), c=linear())
    hidden = torch.randn(2, 3, 16)
    begun = []

    def start() -> PausedRun:
        begun.append(PausedRun(block, [block.a, block.c], Call((hidden,), {}), [block.a]))
        return begun[-1]

    run, paused = RepeatedRun(start), start()
    assert run.to(block.c) is None  # not the next stop
    for layer in (block.a, block.c):
        assert torch.equal(run.to(layer), paused.to(layer))
        assert torch.equal(run.residual, paused.residual)
        run.rest()
        assert run.under_way is None
        layer.weight.data = layer.weight.data.round()
    assert torch.equal(run.finish(), paused.finish())
    assert len(begun) == 4  # one is `paused`; the others were of each stage, and the end
    assert all(each.greenlet is None for each in begun)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in block.modules())


@given(
    st.lists(
        st.tuples(
            st.sampled_from([torch.bfloat16, torch.float32, torch.float64, torch.int64]),
            st.lists(st.integers(0, 40), min_size=1, max_size=3),
        ),
        max_size=8,
    )
)
@settings(deadline=None)
def test_states_in_a_file_are_what_was_put_in(kinds):

    with TemporaryDirectory() as directory:
        states = StatesInFile(Path(directory))
        put = [torch.randint(-99, 99, shape).to(dtype) for dtype, shape in kinds]
        for tensor in put:
            states.append(tensor)
        assert len(states) == len(put)
        for index, tensor in reversed(list(enumerate(put))):
            found = states[index]
            assert found.dtype == tensor.dtype and found.equal(tensor)
            found.zero_()  # a copy of one's own
            assert states[index].equal(tensor)
        assert not list(Path(directory).iterdir())


def test_only_the_rows_that_are_wanted_are_copied_to_where_blocks_run(tmp_path, monkeypatch):
    places = [[], StatesOnHost(CPU), StatesInFile(tmp_path)]
    put = [torch.arange(24.0).view(8, 3) + 100 * n for n in range(2)]
    monkeypatch.setattr(StatesOnHost, "__getitem__", None)  # copies all of a tensor
    monkeypatch.setattr(StatesInFile, "__getitem__", None)
    for states in places:
        for tensor in put:
            states.append(tensor)
        for rows in (
            torch.tensor([5, 0, 5]),
            slice(1, None, 3),
            torch.tensor([], dtype=torch.long),
        ):
            assert rows_of(states, 1, rows).equal(put[1][rows])
        assert kept(states, 0).equal(put[0])


def test_states_that_do_not_fit_are_an_error_with_a_reason(tmp_path):
    with pytest.raises(NearplaneError, match="cannot write in"):
        StatesInFile(tmp_path / "none")
    states = StatesInFile(tmp_path)
    states.file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(NearplaneError, match="hidden states could not be written"):
        states.append(torch.zeros(10**6))


def test_what_calls_have_in_common_is_held_once():
    mask, other = torch.eye(4), torch.eye(4) * 2
    one = {"mask": mask, "parts": (mask.clone(), [other.clone()]), "n": 1}
    two = {"mask": mask.clone(), "parts": (other.clone(), [other.clone()]), "n": 2}
    before = two["parts"][0].data_ptr()
    share_memory_(two, one)
    assert two["mask"].data_ptr() == mask.data_ptr() and two["n"] == 2
    assert two["parts"][0].equal(other) and two["parts"][0].data_ptr() == before
    assert two["parts"][1][0].data_ptr() == one["parts"][1][0].data_ptr()


def test_blocks_that_share_a_weight_do_not_stand_alone(tmp_path):
    model = FAMILIES["llama"].model()
    assert stand_alone(model, model.model.layers)
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    assert not stand_alone(model, model.model.layers)


def test_a_shelf_in_memory_does_nothing():
    with InMemory().loaded(3):
        pass


def test_filling_takes_buffers_too():
    block, fresh = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    fresh.running_mean.fill_(3)
    fill_(block, fresh)
    assert block.running_mean.equal(fresh.running_mean)
    assert not block.weight.requires_grad


def test_experts_are_not_run_again_for_every_expert(monkeypatch):
    """A block starts anew for its stages outside of experts and for its end, however many experts.

    Mixtral's two stages of attention, the experts' entry, and the end: four times for every batch
    and for the two passes that are compared with the model's own beforehand.
    """
    model = moe.FAMILIES["mixtral"].model()
    begun = []
    run = PausedRun.run
    monkeypatch.setattr(PausedRun, "run", lambda self: begun.append(self) or run(self))
    results(model, HPTQ(bpw=9.5), limits=ActivationLimits(0))
    assert len(begun) == 4 * len(model.model.layers) * (len(TOKENS) + 2)

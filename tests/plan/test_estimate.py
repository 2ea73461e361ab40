"""The cost of a run: laws of its parts, and of how processes divide them."""

import importlib
import json
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearplane.methods import ECLQ, HPTQ, METHODS
from nearplane.model.open_model import open_model
from nearplane.model.selection import Rules
from nearplane.plan.devices import DECIDES, DEVICES, known, stated_throughput
from nearplane.plan.estimate import Estimate, estimate
from nearplane.plan.memory import BASE_BYTES, Memory
from nearplane.plan.part import OffloadCost, Part
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import survey
from nearplane.plan.throughput import MethodTrial, Throughput, tried
from nearplane.plan.work import Sizes, network_bytes, parts_of, targets
from nearplane.types import NearplaneError
from nearplane.walk import rounding, walk
from nearplane.walk.calibration import MOST_TOKENS, default_sequences
from nearplane.walk.ranks import Ranks
from nearplane.walk.rounding import targets_of
from tests.cli.conftest import checkpoint, model_dir, nearplane, text

__all__ = ["checkpoint", "model_dir", "nearplane", "text"]

CODING = {"coded_weights": 1e6, "coded_matrices": 50.0}
MOVING = {"read_bytes": 1e9, "write_bytes": 1e9, "link_bytes": 1e9, "link_messages": 1e4}
RATES = Throughput(*[1e9] * 8, **CODING, **MOVING)
TRIAL = MethodTrial(
    sweeps=3.0,
    checks=1.0,
    sweep_s=0.3,
    check_s=0.1,
    rows_s=0.3,
    pieces_s=0.6,
    each_s=0.1,
    matrix_s=0.02,
    calls=50.0,
    sent=10.0,
    weights=10**6,
    size=10**9,
)
ESTIMATE = importlib.import_module("nearplane.plan.estimate")
RANKS = (1, 2, 3, 8, 64)
KEPT = OffloadCost(), OffloadCost(again=0.5, by_blocks=True, spilled=True)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Return a survey of a model whose matrices have several tiles of rows."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048}
    config |= {"intermediate_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 16}
    config |= {"num_key_value_heads": 4, "vocab_size": 1000, "dtype": "bfloat16"}
    directory = tmp_path_factory.mktemp("wide")
    (directory / "config.json").write_text(json.dumps(config))
    rules = Rules(keep=("embedding", "head"))
    return survey(directory, ECLQ(), rules, bare=True)


@pytest.fixture(autouse=True)
def much_memory(monkeypatch):
    """Plans do not depend on what this machine has free."""
    monkeypatch.setattr(ESTIMATE, "available_bytes", lambda: 10**13)


def made(found, ranks=1, sequences=64, length=512, device="cpu") -> Estimate:
    rates = RATES if device == "cpu" else stated_throughput(device, ranks, TRIAL)
    return Estimate(found, RunSize(sequences, length, ranks), rates, TRIAL, device)


def test_an_estimate_grows_with_the_tokens(wide):
    few, many = made(wide, sequences=8), made(wide, sequences=64)
    assert few.seconds < many.seconds
    assert few.peak_bytes < many.peak_bytes
    assert few.peak_bytes > wide.model_bytes + BASE_BYTES


@pytest.mark.parametrize("method", [HPTQ(), ECLQ()], ids=lambda method: method.name)
def test_calibration_and_hessians_take_time_by_the_token(wide, method):
    found = ESTIMATE.replace(wide, method=method)
    # gradients are taken of 8192 tokens, which both have
    few, many = made(found, sequences=16), made(found, sequences=128)
    for group in few.groups:
        grows = group in ("calibration", "Hessians")
        times = many.groups[group] / few.groups[group]
        # a probe takes some Hessians of at most 2048 tokens, whatever the run has
        assert times == pytest.approx(8.0 if grows else 1.0), group


def test_more_processes_never_take_longer_in_a_part_that_is_divided(wide):
    alone = parts_of(wide, RunSize(64, 512, 1), TRIAL)
    before = [part.seconds(RATES) for part in alone]
    for ranks in RANKS[1:]:
        parts = [p for p in parts_of(wide, RunSize(64, 512, ranks), TRIAL) if p.group != "exchange"]
        assert [(p.group, p.rate) for p in parts] == [(p.group, p.rate) for p in alone]
        now = [part.seconds(RATES) for part in parts]
        assert all(a <= b for a, b in zip(now, before, strict=True))
        # nothing is divided better than evenly
        assert all(p.share is None or p.share >= 1 / ranks for p in parts)
        # the whole of the work is that of one process
        assert [p.amount for p in parts] == [p.amount for p in alone]
        before = now


def test_what_processes_divide(wide):
    """Sequences, rows and pieces of integers, as walk/ranks.py does; all else is done by each."""
    parts = parts_of(wide, RunSize(64, 512, 8), TRIAL)
    assert {part.group for part in parts if part.share is None} == {
        "reading",
        "gradients",
        "probing",
        "factors",
        "rounding",
        "coding",
        "exchange",
    }
    divided = [part for part in parts if part.share is not None and part.share < 1]
    assert {part.group for part in divided} == {
        "calibration",
        "Hessians",
        "gradients",
        "targets",
        "rounding",
        "coding",
    }
    coding = [part for part in parts if (part.group, part.rate) == ("coding", "coded_weights")]
    rows, pieces, each = coding
    assert [part.amount / wide.quantized for part in coding] == pytest.approx([0.3, 0.6, 0.1])
    # matrices of 512 to 4096 rows are cut less finely by tiles than by pieces
    assert 1 / 8 < pieces.share < rows.share < 1 and each.share is None


def test_the_walk_shares_what_the_plan_says(model_dir, monkeypatch):
    """Targets are made where rows are shared."""
    shared, made = [], []

    class Noted(Ranks):
        @contextmanager
        def sharing_rows(self):
            shared.append(True)
            yield
            shared.pop()

    def noted(*arguments):
        made.append(bool(shared))
        return targets_of(*arguments)

    monkeypatch.setattr(rounding, "targets_of", noted)
    model, method = open_model(model_dir).model, ECLQ(bpw=5.0, allocate=False)
    tokens = torch.randint(3, 40, (4, 32), generator=torch.Generator().manual_seed(0))
    list(walk.Walk(model, method, tokens, ranks=Noted()))
    divides = targets(Sizes(survey(model_dir, method), RunSize(4, 32, 2))).share
    assert made and set(made) == {divides is not None}


@given(
    count=st.integers(1, 10_000),
    grain=st.integers(1, 1000),
    sequences=st.integers(1, 300),
    size=st.integers(1, 70),
)
def test_processes_divide_the_work_as_ranks_do(count, grain, sequences, size):
    run = RunSize(max(sequences, size), 8, size)
    starts = Ranks(0, size)._starts(count, grain)
    shares = [(b - a) / count for a, b in pairwise(starts)]
    assert run.of_rows(count, grain) == shares
    assert sum(shares) == pytest.approx(1)
    # no part is below a grain, unless there are fewer things
    assert min(share for share in shares if share) * count >= min(grain, count) - 1e-6
    assert sum(run.of_sequences()) == pytest.approx(1)
    lengths = [len(range(run.sequences)[rank::size]) for rank in range(size)]
    assert [share * run.sequences for share in run.of_sequences()] == pytest.approx(lengths)


def test_few_rows_are_rounded_by_one_process():
    assert max(RunSize(64, 8, 2).of_rows(1023)) == 1.0
    assert max(RunSize(64, 8, 2).of_rows(1024)) == 0.5
    # the short tile at the end goes to the one before
    assert RunSize(64, 8, 2).of_rows(1500) == pytest.approx([512 / 1500, 988 / 1500])


def test_processes_are_never_more_than_evenly_faster(wide):
    for ranks in RANKS:
        many = made(wide, ranks)
        assert many.alone.seconds <= ranks * many.seconds
        assert many.alone.network_bytes == 0
    # what all repeat bounds what any number brings
    repeated = sum(p.seconds(RATES) for p in many.parts if p.share is None)
    assert many.seconds > repeated


def test_processors_are_at_work_for_all_that_is_repeated(wide):
    """What one process does is done once more by each, where it is not divided."""
    one = made(wide)
    parts = [part for part in one.parts if part.share is None]
    each = ESTIMATE.START_S + sum(part.seconds(RATES) for part in parts)
    for ranks in RANKS:
        many = made(wide, ranks)
        exchange = ranks * many.groups.get("exchange", 0.0)
        grown = many.spent_seconds - exchange - one.spent_seconds
        assert grown == pytest.approx((ranks - 1) * each)
    assert one.spent_seconds == pytest.approx(one.seconds)


def test_memory_is_kept_to_in_time_that_the_plan_counts(wide):
    """Blocks are read more often, hidden states pass a file, and runs start anew."""
    run = RunSize(64, 512, 2)
    plain, kept = (made(wide, 2).grouped(parts_of(wide, run, TRIAL, k)) for k in KEPT)
    assert "calibration again" not in plain
    # two blocks with four stages each: half of a block for every stage
    assert kept["calibration again"] == pytest.approx(0.5 * 4 / 2 * kept["calibration"])
    assert kept["reading"] > plain["reading"] and kept["writing"] > plain["writing"]
    for group in plain.keys() - {"reading", "writing"}:
        assert plain[group] == kept[group]
    # blocks are read to observe, check, probe and round them by all, forwards and backwards for
    # gradients, and to store what stays by one
    blocks = Sizes(wide, run).inside * wide.model_bytes
    parts = parts_of(wide, run, TRIAL, OffloadCost(by_blocks=True))
    read = [p.amount for p in parts if (p.group, p.rate) == ("reading", "read_bytes")]
    assert read == pytest.approx([wide.model_bytes + 5 * blocks, blocks])
    # bfloat16 states of two streams: half of the tokens, written once for either block
    states = 2 * 64 * 512 / 2 * 2048 * 2 * 2
    assert kept["writing"] - plain["writing"] == pytest.approx(states / 1e9)


def test_what_is_beside_the_work_takes_time_only_beyond_it(wide):
    plain, beside = made(wide), made(wide)
    plain.__dict__["parts"] = parts_of(wide, plain.run, TRIAL)
    beside.__dict__["parts"] = parts_of(
        wide, plain.run, TRIAL, OffloadCost(reads=True, writes=True)
    )
    hidden = beside.overlapped
    assert hidden["reading"] > 0 and hidden["writing"] > 0
    assert beside.seconds == pytest.approx(plain.seconds - sum(hidden.values()))
    assert f"writing of {ESTIMATE.duration(hidden['writing'])}" in beside.assumptions()[0]
    # a disk so slow that the work waits for it
    slow = ESTIMATE.replace(beside, rates=ESTIMATE.replace(RATES, write_bytes=1.0))
    slow.__dict__["parts"] = beside.parts
    work = sum(s for group, s in slow.groups.items() if group not in ESTIMATE.MOVING)
    alone = sum(p.seconds(slow.rates) for p in slow.parts if not p.overlapped)
    waited = slow.overlapped["writing"] - work
    assert slow.seconds == pytest.approx(ESTIMATE.START_S + alone + waited)


def test_what_is_exchanged_grows_with_the_calls_and_with_what_is_told(wide):
    def waited(ranks, **changed):
        run, trial = RunSize(64, 512, ranks), ESTIMATE.replace(TRIAL, **changed)
        parts = parts_of(wide, run, trial)
        return {p.rate: p.amount for p in parts if p.group == "exchange"}

    assert waited(1) == {}
    two, more = waited(2), waited(2, sent=20.0, calls=100.0)
    assert more["link_bytes"] - two["link_bytes"] == pytest.approx(10 * wide.quantized / 2)
    assert more["link_messages"] == 2 * two["link_messages"]
    # two ask for sizes, and both send: in matrices of one piece, one of them
    assert 3 * 50 * len(wide.layers) < two["link_messages"] < 4 * 50 * len(wide.layers) + 1
    assert waited(64)["link_messages"] > 16 * two["link_messages"]


def test_sums_over_a_ring_reach_twice_their_size(wide):
    """Of W bytes, each of N processes sends 2 (N − 1) / N · W, and is sent as much."""
    quiet, wide = ESTIMATE.replace(TRIAL, sent=0.0), ESTIMATE.replace(wide, method=HPTQ())
    summed = 4 * Sizes(wide, RunSize(64, 512)).summed()
    two, eight = (network_bytes(Sizes(wide, RunSize(64, 512, ranks)), quiet) for ranks in (2, 8))
    assert eight - two == pytest.approx((2 * 7 / 8 - 2 * 1 / 2) * summed)
    # beside them the factors, in float64
    assert two - summed == pytest.approx(8 * 2 * (3 * 2048**2 + 4096**2))


def test_work_of_one_layer_by_hand(wide):
    """The sums of the first stage of a model of two streams: 2048 columns, no hidden states."""
    sizes = Sizes(wide, RunSize(64, 512))
    first = next(stage for stage in sizes.stages if not stage.alone)
    flops, numbers = sizes.moments(first)
    assert flops == 2048**2 * (2 * 5 / 8 + 2)
    assert numbers == 2 * 2 * 2048**2
    # q and o, k and v, gate and up, down; times two blocks
    by_hand = 2 * ((2 * 2048 + 2 * 512 + 2 * 4096) * 2048**2 + 2048 * 4096**2)
    assert sizes.rows_by_squares() == by_hand
    assert sizes.factors() == 2 * (3 * 2048**3 + 4096**3) / 3


def test_seconds_are_amount_by_rate():
    assert Part("rounding", "solve_flops", 6e9, 0.5).seconds(RATES) == 3.0
    assert Part("reading", "host_bytes", 6e9).seconds(RATES) == 0.0


def test_memory_is_the_sum_of_its_parts_and_no_less_than_any(wide):
    for ranks in RANKS:
        memory = made(wide, ranks).memory
        assert memory.total == sum(vars(memory).values()) >= max(vars(memory).values())
    assert memory.states < made(wide).memory.states
    # a block is there twice while its layers are put in each other's place
    assert wide.model_bytes < memory.weights < 1.5 * wide.model_bytes
    # at the least the Hessian of the widest layer and its float64 factor
    assert memory.working > (4 + 8) * 4096**2
    assert Memory(1, 2, 3, 4).total == 10


def test_the_disk_holds_what_is_finished(wide):
    estimated = made(wide)
    records = wide.quantized * wide.method.bpw / 8
    rows = sum(layer.shape[0] for layer in wide.layers)
    assert records + 24 * rows < estimated.unfinished_bytes < 1.1 * records
    # the embeddings and the head are in the checkpoint only
    assert estimated.unfinished_bytes < wide.stored_bytes


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_tried(wide, name):
    """Also one that sweeps over nothing, or in its own way, which is said."""
    found = ESTIMATE.replace(wide, method=METHODS[name]())
    trial = tried(found.method, 128)
    assert (trial.sweeps > 0) == (name in ("gptq", "gguf", "hptq", "eclq"))
    assert min(trial.solve_flops, trial.float64_flops, trial.coded_weights) > 1e3
    made = Estimate(found, RunSize(8, 64), RATES, trial)
    assert 0 < made.seconds < float("inf")
    said = any("too little for layers wider than" in line for line in made.lines())
    assert said == (name in ("ssqr", "watersic"))


@pytest.mark.parametrize("ranks", [0, -1])
def test_no_process_is_refused(ranks):
    with pytest.raises(NearplaneError, match="--ranks must be at least 1, not"):
        RunSize(64, 512, ranks)


def test_more_processes_than_sequences_are_refused():
    with pytest.raises(NearplaneError, match="8 sequences cannot be shared by 9 processes"):
        RunSize(8, 512, 9)


def test_an_unknown_device_is_refused(wide):
    with pytest.raises(NearplaneError, match="h9000: .* projected are a100, b200, h100, h200"):
        estimate(wide, device="h9000")
    assert known("cpu") == torch.device("cpu")
    assert known("h100") is None


def test_processes_share_this_machine_s_memory(wide):
    """As a run without --memory does; accelerators have each their own."""
    assert made(wide).capacity == 8 * made(wide, 8).capacity
    assert made(wide, 8, device="h100").capacity == DEVICES["h100"].memory_bytes


def test_lack_of_memory_is_said(wide, monkeypatch):
    monkeypatch.setattr(ESTIMATE, "available_bytes", lambda: 1)
    assert any(line.startswith("warning: ") for line in made(wide).lines())
    assert not any(line.startswith("warning: ") for line in made(wide, device="h100").lines())


@pytest.mark.parametrize("device", DEVICES)
def test_a_projection_says_so_and_all_that_it_rests_on(wide, device):
    for ranks in (1, 64):
        said = "\n".join(made(wide, ranks, device=device).lines())
        assert "a projection: nothing here was measured on an " in said
        assert "on the host, by one core a process, as measured on this one just now: " in said
        assert "searches and packing 1.0 million weights/s and 20 ms a matrix" in said
        for peak in DEVICES[device].peaks.values():
            assert f"of {peak / 1e12:g} TFLOP/s" in said
        assert all(f" for {part}" in said for part in DECIDES.values())
        assert "expect the right order of magnitude, not more" in said
    assert f"0.7 of {DEVICES[device].network / 1e9:g} between servers" in said


def test_a_device_is_never_faster_than_its_peaks():
    for name, device in DEVICES.items():
        rates = stated_throughput(name, 1, TRIAL)
        assert rates.forward_flops < device.peaks["bfloat16"]
        assert rates.solve_flops < device.peaks["float32"]
        assert rates.factor_flops < device.peaks["float64"]
        assert rates.link_bytes < device.link and rates.moved_bytes < device.moves
        assert stated_throughput(name, 64, TRIAL).link_bytes < rates.link_bytes


def test_every_part_of_a_run_is_told(wide):
    estimated = made(wide, 8)
    lines = estimated.time_lines()
    assert "by 8 processes" in lines[0] and "times as fast as one in as much memory" in lines[0]
    told = {line.split(":")[0].strip(): line for line in lines[1:]}
    assert list(told) == list(estimated.groups)
    for group in ("reading", "probing", "factors"):
        assert told[group].endswith("repeated by each")
    for group in ("calibration", "Hessians", "rounding", "coding"):
        assert told[group].endswith("times as fast as by one")
    assert "8.0 times" in told["calibration"]
    for group in ("exchange", "writing"):
        assert told[group].endswith("%")
    one = made(wide).time_lines()
    assert "by one process" in one[0] and not any("times" in line for line in one)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("device", ["cpu", "h100"])
def test_a_plan_is_short(wide, ranks, device):
    lines = made(wide, ranks, device=device).lines()
    lines = [line for line in lines if not line.endswith("as asked")]
    assert len(lines) <= 27 and len(set(lines)) == len(lines)


def test_the_machine_is_measured(wide):
    found = estimate(wide, 8, 64)
    flops = [value for name, value in vars(found.rates).items() if name.endswith("_flops")]
    assert min(flops) > 1e7 and found.rates.coded_weights > 1e3
    trial = found.trial
    assert trial.sweeps >= 1 and trial.checks == 1
    assert min(trial.rows_s, trial.pieces_s, trial.matrix_s) > 0 <= trial.each_s
    # a sweep's integers fit in a byte, and are packed at three bits; losses and counts are few
    assert trial.sweeps + 3 / 8 < trial.sent < 20
    assert 10 < trial.calls < 200


def test_times_can_be_read():
    assert [ESTIMATE.duration(s) for s in (30.0, 600.0, 36000.0)] == ["30 s", "10 min", "10.0 h"]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_time_buys_the_most_sequences_that_fit(wide, ranks):
    run, length = made(wide, ranks), 512
    most = MOST_TOKENS // length
    # processes wait for the busiest, so that each gets as many
    for sequences in (ranks, 42):
        seconds = run.with_sequences(sequences).seconds
        assert run.within(seconds).run.sequences == sequences
    assert run.within(seconds * (1 - 1e-9)).run.sequences == 42 - ranks
    plenty = run.within(1e9)
    assert plenty.run.sequences == most and "more tokens help little" in plenty.time_sentence(1e9)
    assert f"on 40 x {length} tokens" in run.with_sequences(40).time_sentence(600.0)
    with pytest.raises(NearplaneError, match=r"too little for .*with . x 512 tokens .*--time"):
        run.within(run.with_sequences(ranks).seconds / 2)


@pytest.mark.parametrize(
    "widest, length, sequences",
    [(64, 2048, 8), (64, 128, 128), (4096, 2048, 48), (1536, 512, 72), (10**6, 2048, 128)],
)
def test_default_calibration_grows_with_the_widest_layer(widest, length, sequences):
    assert default_sequences(widest, length) == sequences
    assert default_sequences(widest, length, 1000) == 1000


def test_work_shorter_than_a_tick_of_the_clock_has_a_rate(monkeypatch):
    throughput = importlib.import_module("nearplane.plan.throughput")
    monkeypatch.setattr(throughput, "MEASURE_S", 0.001)
    monkeypatch.setattr(throughput.Clock, "seconds", 0.0)
    assert throughput.seconds_of(lambda: None) > 0
    trial = tried(HPTQ(bpw=4.0), 64)
    assert trial.coded_weights > 0 and trial.coded_matrices > 0

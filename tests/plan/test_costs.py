"""The table of costs: its lines add up, each is bound by one thing, and by nothing else."""

import json
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearplane.methods import ECLQ, HPTQ, METHODS
from nearplane.model import meta_run
from nearplane.plan import devices, method_launches
from nearplane.plan.costs import BOUND, COLUMN, bound_of, cost_lines, table
from nearplane.plan.devices import DEVICES, SHARES, rates_of
from nearplane.plan.method_launches import counted, counted_rows, sweep_starts
from nearplane.plan.part import OffloadCost
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import survey
from nearplane.plan.throughput import Throughput, once
from nearplane.plan.trial_matrix import TrialMatrix
from nearplane.plan.work import parts_of
from tests.cli.conftest import nearplane
from tests.plan.test_estimate import TRIAL

__all__ = ["nearplane"]

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "dtype": "bfloat16",
}
# what the run's offload adds, and what several processes send each other
ALL = OffloadCost(again=0.5, by_blocks=True, spilled=True)
PEAKS = ["bfloat16", "float32", "float64", "moves", "host", "link"]
OF_PEAK = {rate: kind for rate, (_, kind) in SHARES.items()} | {
    "moved_bytes": "moves",
    "host_bytes": "host",
    "link_bytes": "link",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Return a directory with nothing but a configuration."""
    path = tmp_path_factory.mktemp("bare")
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


@pytest.fixture(scope="module")
def parts(directory):
    """Return all parts of a run by ECLQ, with counted launches."""
    found = survey(directory, ECLQ(), bare=True)
    trial = replace(TRIAL, launches=counted(HPTQ(), [512, 1024]))
    return parts_of(found, RunSize(16, 512, 2), trial, ALL)


def test_every_rate_has_a_column_or_is_a_bound():
    assert {field.name for field in fields(Throughput)} == COLUMN.keys() | BOUND.keys()


@pytest.mark.parametrize("device", DEVICES)
def test_lines_add_up_to_the_run_and_fit_a_terminal(parts, device):
    rates = rates_of(DEVICES[device], 2, TRIAL)
    lines = cost_lines(parts, rates)
    assert sum(line.seconds for line in lines) == pytest.approx(
        sum(part.seconds(rates) for part in parts)
    )
    assert len({line.name for line in lines}) == len(lines)
    flops = sum(line.amounts.get("float64", 0.0) for line in lines)
    counted_twice = [
        p.amounts.get("float64_flops", 0) + p.amounts.get("factor_flops", 0) for p in parts
    ]
    assert flops == pytest.approx(sum(counted_twice))
    said = table(parts, rates, torch.bfloat16, 6.0)
    assert max(map(len, said)) <= 100
    # every line but the last one, which is the sum, ends in what bounds it
    bounds = {*COLUMN.values(), *BOUND.values(), "bfloat16"}
    assert all(line.split("  ")[-1].strip() in bounds for line in said[2:-1])
    total = float(said[-1].split()[-1].replace(",", ""))
    assert total == pytest.approx(6.0 + sum(part.seconds(rates) for part in parts), rel=0.01)


@given(device=st.sampled_from(list(DEVICES)), peak=st.sampled_from(PEAKS))
def test_a_peak_lowers_the_parts_that_it_bounds_and_no_others(parts, device, peak):
    slow = DEVICES[device]
    if peak in slow.peaks:
        fast = replace(slow, peaks=slow.peaks | {peak: 2 * slow.peaks[peak]})
    else:
        fast = replace(slow, **{peak: 2 * getattr(slow, peak)})
    before, after = rates_of(slow, 2, TRIAL), rates_of(fast, 2, TRIAL)
    for part in parts:
        bounded = OF_PEAK.get(part.bound(before)) == peak
        was, now = part.seconds(before), part.seconds(after)
        assert was / 2 <= now < was if bounded and was else now == was
        assert now == max(part.times(after).values())
        assert bound_of(part, after) in {*COLUMN.values(), *BOUND.values()}


@given(leaves=st.integers(1, 40), rows=st.integers(1, 300))
def test_a_sweep_starts_a_kernel_a_leaf_and_a_product_between_two(leaves, rows):
    one = sweep_starts(rows, 32)
    many = sweep_starts(rows, 32 * leaves)
    assert many.launches - one.launches == 2 * (leaves - 1)
    assert many.bytes >= leaves * one.bytes


def test_launches_are_counted_as_methods_make_them(monkeypatch):
    one, two = (counted_rows(HPTQ(bpw=4.0), rows) for rows in (1024, 2048))
    assert set(one.calls) == set(two.calls) == {1024}
    # twice as many rows are rounded in twice as many calls
    assert two.sweep(2048, 512).launches == 2 * one.sweep(1024, 512).launches
    assert one.other(1024, 4096).launches == one.other(1024, 512).launches < 1000
    # rows that make up for each other are rounded a few at a time, in as many more launches
    blocks = counted_rows(ECLQ(bpw=4.0), 512)
    assert set(blocks.calls) == {16}
    assert blocks.sweep(512, 512).launches > 20 * one.sweep(512, 512).launches
    # without a kernel, every column of a sweep is a few operators
    monkeypatch.setattr(method_launches, "KERNEL", "none")
    plain = counted_rows(HPTQ(bpw=4.0), 512)
    assert not plain.calls and plain.sweep(512, 4096).launches == 0
    assert plain.other(512, 4096).launches > 3 * 4096 > 3 * one.other(512, 4096).launches


def test_two_sided_rounding_is_tried_as_it_runs():
    """With an output Hessian, whose factor and products are counted elsewhere."""
    matrix = TrialMatrix.of(ECLQ(bpw=4.0), 0, 512, 128)
    assert [block.shape for block in matrix.output_hessian] == [(512, 512)]
    trial = once(matrix)
    assert trial.checks == 1 and trial.sweeps >= 1
    # all rows are rounded 32 times a sweep, a few of them each
    assert trial.calls > 32 * trial.sweeps
    assert once(TrialMatrix.of(ECLQ(two_sided=False), 0, 512, 128)).calls < 60


def test_the_host_s_share_leaves_out_operators():
    matrix = TrialMatrix.of(METHODS["hptq"](), 0, 512, 256)
    assert once(matrix, on_host=True).rest_s < once(matrix).rest_s


def test_a_plan_shows_the_table(directory, nearplane):
    result = nearplane("plan", directory, "--method", "hptq", "--device", "rtx4090")
    assert result.exit_code == 0, result.output
    for words in ("bound by", "rounding sweeps", "host's cores", "copying to the device", "µs"):
        assert words in result.output
    assert "RTX 4090" in result.output and devices.DEVICES["rtx4090"].peaks["float64"] == 1.29e12


def test_a_model_that_cannot_be_counted_is_surveyed_all_the_same(directory, monkeypatch):
    whole = survey(directory, HPTQ(), bare=True)

    class Fails(meta_run.OperatorCount):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if self.launches > 20:
                raise NotImplementedError
            return super().__torch_dispatch__(func, types, args, kwargs)

    monkeypatch.setattr(meta_run, "OperatorCount", Fails)
    part = survey(directory, HPTQ(), bare=True)
    assert whole.launches > 100 and part.launches == 0
    names = [[[layer.name for layer in stage] for stage in found.stages] for found in (whole, part)]
    assert names[0] == names[1]

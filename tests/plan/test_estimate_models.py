"""Plans of four large models: what is known of them bounds what may be said of them."""

import importlib.util
from pathlib import Path

import pytest

from nearplane.methods import ECLQ
from nearplane.model.selection import Rules
from nearplane.plan.backward import squares_of
from nearplane.plan.devices import DEVICES, stated_throughput
from nearplane.plan.estimate import Estimate
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import survey
from nearplane.plan.throughput import MethodTrial
from nearplane.plan.work import Sizes

BENCH = Path(__file__).parents[2] / "bench" / "plan_models.py"
H100 = DEVICES["h100"]
BPW, CODED = 3.125, 5e6
SEQUENCES, LENGTH = 128, 2048
TRIAL = MethodTrial(
    sweeps=3.0,
    checks=1.0,
    sweep_s=0.3,
    check_s=0.1,
    rows_s=0.12,
    pieces_s=0.06,
    each_s=0.02,
    matrix_s=0.03,
    calls=60.0,
    sent=12.0,
    weights=10**6,
    size=10**9,
)
# numbers of parameters in the models' papers, and those that a token is multiplied by: all but the
# embedding and the head, and of DeepSeek-V3 37e9 with these two, which are 1.85e9
PUBLISHED = {
    "Llama-3.1-8B": (8.03e9, 6.98e9),
    "Llama-3.1-70B": (70.55e9, 68.45e9),
    "Llama-3.1-405B": (405.85e9, 401.65e9),
    "DeepSeek-V3": (671.0e9, 35.7e9),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return the directories that the bench writes, by the models' names."""
    spec = importlib.util.spec_from_file_location("plan_models", BENCH)
    assert spec and spec.loader
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    return {place.name: place for place in bench.written(tmp_path_factory.mktemp("models"))}


def plans(found, allowed: int | None = 10**13) -> dict[int, Estimate]:
    """Return plans for H100s, by the number of processes; all fits in memory unless asked."""

    def made(ranks: int) -> Estimate:
        run, rates = RunSize(SEQUENCES, LENGTH, ranks), stated_throughput("h100", ranks, TRIAL)
        return Estimate(found, run, rates, TRIAL, "h100", allowed)

    return {ranks: made(ranks) for ranks in (1, 8, 64)}


# some 45,000 layers take most of a minute on a busy machine
@pytest.mark.parametrize(
    "name",
    [n if n != "DeepSeek-V3" else pytest.param(n, marks=pytest.mark.long) for n in PUBLISHED],
)
def test_plans_are_bounded_by_what_is_known(models, name):
    whole, active = PUBLISHED[name]
    # published counts of active weights are without the embedding; head and embedding stay here
    rules = Rules(keep=("embedding", "head"))
    found = survey(models[name], ECLQ(bpw=BPW), rules, bare=True)
    made = plans(found)
    one = made[1]

    # published counts have three digits; routers and norms are less than a thousandth
    assert found.quantized + found.unquantized == pytest.approx(whole, rel=2e-3)
    assert found.active == pytest.approx(active, rel=0.02)

    # two bytes a weight in memory, and a block twice; records and what is kept on the disk
    assert 1 < one.memory.weights / found.model_bytes < 1.04
    stored = found.quantized * BPW / 8 + 2 * found.unquantized
    assert found.stored_bytes == pytest.approx(stored, rel=1e-3)
    # the widest matrix as it is needed for targets: at the least a Hessian and its float64 factor
    widest = max(layer.shape[1] for layer in found.layers)
    assert one.memory.working > 12 * widest**2

    # two streams of 2 flops a weight and token: no faster than the peak, and half of it assumed;
    # attention, norms and the 8192 tokens an expert is lent make it at most four times as much
    peak_s = 2 * 2 * SEQUENCES * LENGTH * active / H100.peaks["bfloat16"]
    assert 2 * peak_s < one.groups["calibration"] < 8 * peak_s

    # every weight is coded once, by the rate given, and every matrix takes 30 ms; triangles on the
    # device add to it
    coded_s = found.quantized / CODED + 0.03 * len(found.layers)
    assert coded_s < one.groups["coding"] < 1.5 * coded_s

    # three sweeps of rows · n² at a quarter of the peak, and certificates: one of 1.25 rows · n²
    # at 0.6 of the peak in float64, and two more where inputs drift, which experts' do not
    sizes = Sizes(found, one.run)
    size, drifted = sizes.rows_by_squares(), sizes.rows_by_squares(drifted=True)
    swept = 3 * size / (0.25 * H100.peaks["float32"])
    checked = 1.25 * (size + 2 * drifted) / (0.6 * H100.peaks["float64"])
    # rows make up for each other in three sweeps, and once more for the certificate
    alone = [layer for layer in found.layers if layer.name not in found.shares]
    moved = 4 * sum(squares_of(la) * la.shape[1] for la in alone) / one.rates.float32_flops
    assert one.groups["rounding"] == pytest.approx(swept + checked + moved)

    # all weights are read five times at 2 GB/s, and pass the link to the device as often
    assert one.groups["reading"] > 5 * found.model_bytes / 2e9

    # on the whole: what is bounded above is most of it
    known = peak_s + coded_s + swept + checked + 5 * found.model_bytes / 2e9
    assert known < one.seconds < 3 * known

    # with many, what is divided takes a tenth and less; what each repeats bounds the whole
    many = made[64]
    each_s = 0.1 * found.quantized / CODED + 0.03 * len(found.layers)
    assert many.groups["calibration"] == pytest.approx(one.groups["calibration"] / 64)
    assert each_s < many.groups["coding"] < each_s + 0.3 * coded_s
    for group in ("reading", "probing", "factors"):
        assert many.groups[group] == pytest.approx(one.groups[group])
    assert 1.5 < one.seconds / many.seconds < coded_s / each_s

    # what each is sent: 12 bytes a weight, and 28 where it has a target; two sums of a stage twice
    # over a ring, the factors
    squares = sum(stage[0].shape[1] ** 2 for stage in found.stages)
    told = 63 / 64 * (12 * found.quantized + 28 * sizes.drifted)
    least, most = (told + times * squares for times in (8 + 8, 8 + 40))
    assert least * 0.98 < many.network_bytes < most


def test_what_exceeds_an_accelerator_s_memory_is_said(models):
    """8B is kept whole by 8, and by blocks by one; a layer of 405B needs more than there is."""
    small, large = (
        plans(survey(models[f"Llama-3.1-{size}"], ECLQ(bpw=BPW), bare=True), None)
        for size in ("8B", "405B")
    )
    assert small[1].offload_cost.by_blocks and not small[8].offload_cost.by_blocks
    # once more through the link than five times, and nothing else that is as long
    assert small[1].groups["reading"] > 1.15 * small[8].groups["reading"]
    assert large[64].offload_cost.again == 1
    for made, warned in ((small, False), (large, True)):
        assert any(line.startswith("warning: ") for line in made[64].lines()) == warned


def test_plans_are_monotone(models):
    """A larger model takes more of everything; more processes more of no divided part."""
    dense = [name for name in PUBLISHED if name != "DeepSeek-V3"]
    made = [plans(survey(models[name], ECLQ(bpw=BPW), bare=True)) for name in dense]
    for small, large in zip(made, made[1:], strict=False):
        for ranks in small:
            a, b = small[ranks], large[ranks]
            assert a.seconds < b.seconds and a.peak_bytes < b.peak_bytes
            assert a.survey.stored_bytes < b.survey.stored_bytes
            assert a.unfinished_bytes < b.unfinished_bytes
            assert ranks == 1 or a.network_bytes < b.network_bytes
    for each in made:
        for group in ("calibration", "Hessians", "rounding"):
            times = [each[ranks].groups[group] for ranks in (1, 8, 64)]
            # sequences divide evenly, tiles of the smallest matrices do not
            assert times[0] / times[1] == pytest.approx(8, rel=0.4)
            assert times[0] > times[1] > times[2]
        assert each[1].peak_bytes > each[8].peak_bytes > each[64].peak_bytes

"""The command line on a model with experts: planned, quantized, verified, inspected, evaluated."""

import json

import pytest

from nearplane.evaluate.verify import verify_against
from nearplane.methods import ECLQ, HPTQ
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import survey
from nearplane.plan.work import Sizes
from tests.cli import tiny
from tests.plan.test_estimate import made as planned
from tests.walk import moe

# 256 tokens: most experts get less than four for each of 32 columns
SMALL = ("--method", "hptq", "--bpw", "6", "--sequences", "8", "--length", "32")


@pytest.fixture(scope="module")
def experts_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("experts")
    model = moe.FAMILIES["qwen2_moe"].model(vocab_size=320, bos_token_id=0, eos_token_id=1)
    model.save_pretrained(directory)
    tiny.tokenizer(bos=True).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def made(nearplane, experts_dir, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    return out, nearplane("quantize", experts_dir, out, "--calibration", text, *SMALL)


def test_quantize_lists_experts_with_few_tokens(made):
    out, result = made
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    borrowers = {
        row["name"].split(".")[5]
        for row in report["layers"]
        if row["name"].startswith(EXPERTS) and row["fallback"]
    }
    assert borrowers
    line = next(line for line in result.output.splitlines() if line.startswith(f"{EXPERTS}: "))
    assert f"{len(borrowers)} experts had few tokens" in line
    for index in borrowers:
        assert f" {index} ({report['experts'][EXPERTS][index]})" in line
    assert "warning" not in result.output
    assert "model.layers.1.mlp.gate stays as it is" in result.output
    assert "model.layers.1.mlp.shared_expert_gate stays as it is" in result.output


EXPERTS = "model.layers.1.mlp.experts"


def test_certificates_are_verified_with_what_was_borrowed(made, experts_dir, nearplane):
    out, _ = made
    result = nearplane("verify", out, "--against", experts_dir)
    assert result.exit_code == 0, result.output
    assert "calibration losses recomputed" in result.output
    found = verify_against(str(out), str(experts_dir))
    # nothing else differs on the machine that made it
    assert "the worst off by" in found.checked[-1] and "e-0" in found.checked[-1]
    assert float(found.checked[-1].split("off by ")[1].split()[0]) < 1e-4


def test_inspect_and_eval_and_run(made, text, nearplane):
    out, _ = made
    shown = nearplane("inspect", out)
    assert shown.exit_code == 0, shown.output
    assert f"{EXPERTS}.3.down_proj" in shown.output
    assert f"{EXPERTS}: " in shown.output and "borrowed from all of their layer" in shown.output
    assert "kept: model.layers.*.mlp.gate.weight" in shown.output
    rows = json.loads(nearplane("inspect", out, "--json").output)["layers"]
    assert all(row["relative_loss"] is not None for row in rows)
    for choice in ("--dequantize", "--no-dequantize"):
        result = nearplane("eval", out, "--text", text, "--context", "64", "--no-record", choice)
        assert result.exit_code == 0, result.output
    assert nearplane("run", out, "the nearest", "--tokens", "4").exit_code == 0


def test_the_plan_is_what_the_run_did(made, experts_dir, nearplane):
    out, _ = made
    report = json.loads((out / "report.json").read_text())
    found = survey(experts_dir, HPTQ(bpw=6.0))
    assert {layer.name for layer in found.layers} == {row["name"] for row in report["layers"]}
    assert found.unquantized == report["bits"]["other_numbers"]
    stored = report["bits"]["quantized_bytes"] + report["bits"]["other_bytes"]
    assert found.stored_bytes == pytest.approx(stored, rel=0.15)
    assert sum("stays as it is" in sentence for sentence in found.selection.left_out()) == 4
    assert nearplane("plan", experts_dir, "--method", "hptq", "--bpw", "6").exit_code == 0


def test_the_plan_counts_the_share_of_tokens_that_an_expert_sees(experts_dir):
    found = survey(experts_dir, ECLQ(bpw=9.5))
    inside = [layer for layer in found.layers if ".experts." in layer.name]
    assert set(found.shares) == {layer.name for layer in inside}
    assert set(found.shares.values()) == {2 / 8}
    # two blocks: q, k and v, o, shared gate and up, shared down; and two stages an expert
    # and the embedding and the head
    assert len(found.stages) == 2 * (4 + 2 * 8) + 2
    assert found.units == 2 * (4 + 3 + 3) + 2
    weights = sum(layer.weight().numel() for layer in inside)
    assert found.active == found.quantized - weights + weights / 4
    few, many = (planned(found, sequences=8, length=length).seconds for length in (32, 3200))
    assert few < many
    # 64 tokens an expert, fewer than four for each of its columns; and 6400, which are enough
    assert min(Sizes(found, RunSize(8, 32)).lent_flops()) > 0
    assert Sizes(found, RunSize(8, 3200)).lent_flops() == (0, 0)
    said = planned(found, ranks=2).lines()
    assert not any("refuse" in line for line in said)

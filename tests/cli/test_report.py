"""report, compare, and the pictures of inspect."""

import json
import os
import shutil
from pathlib import Path

import pytest

from nearplane.export.checksums import verify_sums
from nearplane.export.evaluations import append_evaluations
from tests.cli.test_quantize import refused


@pytest.fixture
def altered(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


def test_a_checkpoint_has_a_page_of_its_report(checkpoint, altered, nearplane):
    page = (checkpoint / "report.html").read_text()
    report = json.loads((checkpoint / "report.json").read_text())
    worst = max(report["layers"], key=lambda entry: entry["relative_loss"])
    assert f"<b>{worst['name']}</b> lost most" in page and "not measured" in page
    assert all(entry["log2_pivots"] for entry in report["layers"])
    assert report["machine"]["versions"]["torch"] and report["kept"]
    units = report["sensitivity"]["units"]
    assert set(units) == {entry["name"] for entry in report["layers"]}
    expected = sum(expected for _, expected in units.values())
    assert expected == pytest.approx(report["recipe"]["predicted_kl"], rel=1e-6)
    result = nearplane("report", altered)
    assert result.exit_code == 0 and worst["name"] in result.stdout.splitlines()[0]
    # the directory's name is in the commands that are shown
    made = (altered / "report.html").read_text()
    assert made.replace("eval copy", "eval out") == page


def test_the_page_follows_the_report_and_its_sum_follows_the_page(altered, nearplane):
    content = json.loads((altered / "report.json").read_text())
    figures = {"perplexity": {"value": 11.5}}
    content["evaluations"] = [{"kind": "text", "text": "held.txt", "figures": figures}]
    (altered / "report.json").write_text(json.dumps(content))
    assert nearplane("report", altered).exit_code == 0
    assert "11.5" in (altered / "report.html").read_text()
    # what somebody else changed stays to be seen
    assert [problem.split()[0] for problem in verify_sums(altered)] == ["'report.json'"]
    (altered / "SHA256SUMS").unlink()
    assert nearplane("report", altered).exit_code == 0 and not (altered / "SHA256SUMS").exists()


def test_another_place_leaves_the_checkpoint_as_it_was(altered, nearplane, tmp_path):
    before = (altered / "report.html").stat().st_mtime_ns
    assert nearplane("report", altered, "--out", tmp_path / "page.html").exit_code == 0
    assert (tmp_path / "page.html").read_bytes().startswith(b"<!doctype html>")
    assert (altered / "report.html").stat().st_mtime_ns == before and not verify_sums(altered)


def test_damaged_reports_are_refused_in_one_sentence(altered, nearplane, tmp_path):
    page = (altered / "report.html").read_bytes()
    (altered / "report.json").write_text('{"layers": [{"name": "a"}]}')
    for words in (("report", altered), ("compare", altered, tmp_path)):
        refused(nearplane(*words), "has no rows above zero")
    assert (altered / "report.html").read_bytes() == page
    result = nearplane("inspect", altered)
    assert result.exit_code == 0 and "not used: " in result.stdout
    (altered / "report.json").unlink()
    refused(nearplane("report", altered), "has no report.json")


def test_compare_shows_runs_side_by_side(nearplane, checkpoint, grouped, tmp_path):
    page = tmp_path / "page.html"
    result = nearplane("compare", checkpoint, grouped, "--html", page)
    assert result.exit_code == 0, result.output
    for part in ("eclq", "rtn", "mlp.down_proj", "15 of 15", "0 of 14", "lost most"):
        assert part in result.stdout
    # both were calibrated on one text
    assert "warning" not in result.stdout and "calibration tokens, SHA-256" in result.stdout
    said = page.read_text()
    assert 'id="warnings"' not in said
    assert said.count('<td class="n">eclq</td>') == 1 and said.count("rtn</td>") == 1
    refused(nearplane("compare", checkpoint), "two or more")
    refused(nearplane("compare", checkpoint, checkpoint), "two or more")


def test_inspect_begins_with_kinds_and_ends_with_advice(nearplane, checkpoint):
    lines = nearplane("inspect", checkpoint).stdout.splitlines()
    assert lines[0].startswith("kind") and any(line.startswith("mlp.down_proj") for line in lines)
    strips = [line for line in lines if line.startswith("mlp.up_proj")][1:]
    assert len(strips) == 2 and all(set(line) & set("▁▂▃▄▅▆▇█") for line in strips)
    assert "lost most" in lines[-3] and "Half a bit more" in lines[-2]
    assert "nearplane eval" in lines[-1]


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_an_update_that_was_cut_off_is_finished(
    altered, checkpoint, nearplane, monkeypatch, renamed
):
    """A kill behind each of the renames; `replace` raises what no handler sees, as a kill does."""

    class KilledError(BaseException):
        pass

    done = []

    def replace(path, target):
        if path.name.startswith(".") and len(done) == renamed:
            raise KilledError
        done.append(target)
        os.replace(path, target)

    before = (altered / "report.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
        with pytest.raises(KilledError):
            figures = {"perplexity": {"value": 11.5}}
            append_evaluations(altered, [{"kind": "text", "text": "t", "figures": figures}])
    # the process that wrote them has ended
    monkeypatch.setattr("nearplane.export.interrupted_update.is_alive", lambda process: False)
    told = "was cut off between two files: nearplane report"
    verified, compared = nearplane("verify", altered), nearplane("compare", altered, checkpoint)
    if renamed:
        assert verified.exit_code == 1
        assert verified.stdout.count("wrong: ") == 1 and told in verified.stdout
        elsewhere = nearplane("report", altered, "--out", altered.parent / "page.html")
        assert told in elsewhere.stdout and verify_sums(altered)
    else:
        assert verified.exit_code == 0 and told not in verified.output
    assert compared.exit_code == 0 and (told in compared.output) == bool(renamed)
    result = nearplane("report", altered)
    assert result.exit_code == 0
    assert ("had been cut off was finished" in result.stdout) == bool(renamed)
    assert verify_sums(altered) == [] and nearplane("verify", altered).exit_code == 0
    assert ((altered / "report.json").read_bytes() == before) == (not renamed)
    assert ("11.5" in (altered / "report.html").read_text()) == bool(renamed)
    assert not [name for name in os.listdir(altered) if name.startswith(".")]


def test_what_a_stranger_changed_is_not_taken_for_an_update(altered, nearplane):
    left = altered / ".SHA256SUMS.1-0123abcd"
    left.write_bytes((altered / "SHA256SUMS").read_bytes())
    content = json.loads((altered / "report.json").read_text()) | {"seconds": 1.0}
    (altered / "report.json").write_text(json.dumps(content))
    assert nearplane("report", altered).exit_code == 0
    assert [problem.split()[0] for problem in verify_sums(altered)] == ["'report.json'"]
    assert not left.exists()

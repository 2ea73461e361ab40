"""eval of several texts, and what it adds to report.json."""

import json
import math
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from nearplane.cli.evaluation import table
from nearplane.cli.progress import PlainLines
from nearplane.export import evaluations
from nearplane.export.checksums import verify_sums
from tests.cli.test_quantize import refused

CUT = ("--context", "32", "--windows", "12")


@pytest.fixture
def own(checkpoint, tmp_path):
    """Return a checkpoint that may be altered."""
    return shutil.copytree(checkpoint, tmp_path / "own")


@pytest.fixture
def texts(text, tmp_path):
    """Return the options of two texts."""
    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[2000:])
    return "--text", text, "--text", other


def test_a_row_a_text_and_an_entry_a_text(nearplane, own, model_dir, texts):
    done = nearplane("eval", own, *texts, *CUT, "--against", model_dir)
    assert done.exit_code == 0, done.output
    rows = done.stdout.splitlines()[:3]
    assert rows[0].split()[:3] == ["text", "windows", "perplexity"]
    assert "context 32, stride 32, opened by token 0" in done.stdout
    entries = json.loads((own / "report.json").read_text())["evaluations"]
    for row, entry in zip(rows[1:], entries, strict=True):
        assert entry["text"] in row and entry["windows"] == 12 and entry["tokens"] == 12 * 31
        figures = entry["figures"]
        shown = [float(n) for n in re.findall(r"[\d.e-]+(?=\))|(?<=\()[\d.e-]+", row)]
        assert shown[:2] == pytest.approx(
            [figures["perplexity"]["low"], figures["perplexity"]["high"]], abs=1e-3
        )
        for name in ("perplexity", "reference_perplexity", "perplexity_ratio", "kl", "top1"):
            assert figures[name]["low"] < figures[name]["value"] < figures[name]["high"]
        # too few tokens are beyond these quantiles
        assert figures["kl_99"]["low"] is figures["kl_999"]["low"] is None
        paired = [math.log(figures["perplexity_ratio"][end]) for end in ("low", "high")]
        alone = [math.log(figures["perplexity"][end]) for end in ("low", "high")]
        assert paired[1] - paired[0] < alone[1] - alone[0]
    assert entries[0]["text_sha256"] != entries[1]["text_sha256"]
    assert entries[0]["against"] == str(model_dir) and entries[0]["weights"] == "decoded"


def test_entries_are_appended_and_the_sums_agree(nearplane, own, text):
    before = json.loads((own / "report.json").read_text())
    for stride in ("32", "16"):
        done = nearplane("eval", own, "--text", text, *CUT, "--stride", stride, "--json")
        printed = json.loads(done.stdout)["evaluations"]
    report = json.loads((own / "report.json").read_text())
    assert [entry["stride"] for entry in report["evaluations"]] == [32, 16]
    assert report["evaluations"][1:] == [{**printed[0], "date": report["evaluations"][1]["date"]}]
    assert {k: v for k, v in report.items() if k != "evaluations"} == before
    assert nearplane("verify", own).exit_code == 0
    assert not [path.name for path in own.iterdir() if path.name.startswith(".")]
    content = (own / "report.json").read_bytes()
    assert nearplane("eval", own, "--text", text, *CUT, "--no-record").exit_code == 0
    assert (own / "report.json").read_bytes() == content


def damaged(own):
    (own / "report.json").write_text((own / "report.json").read_text() + " ")


@pytest.mark.parametrize(
    "change, said",
    [
        (damaged, "differs from its sum in SHA256SUMS"),
        (lambda own: (own / "report.json").unlink(), "there is none"),
        (lambda own: (own / "report.json").write_text("[1]"), "no JSON object"),
        (lambda own: (own / "report.json").write_text('{"evaluations": 3}'), "no list"),
        (lambda own: link(own / "report.json"), "a link"),
    ],
    ids=["damaged", "missing", "no object", "no list", "link"],
)
def test_what_cannot_be_added_to_stays_as_it_is(nearplane, own, text, change, said):
    change(own)
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    done = nearplane("eval", own, "--text", text, *CUT)
    assert done.exit_code == 0 and "perplexity" in done.stdout
    assert "not recorded: " in done.stderr and said in done.stderr
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before


def link(path):
    kept = path.rename(path.with_name("kept.json"))
    path.symlink_to(kept)


def test_a_directory_that_cannot_be_written_is_said(nearplane, own, text, monkeypatch):
    def read_only(path):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(evaluations, "OutputLock", read_only)
    done = nearplane("eval", own, "--text", text, *CUT)
    assert done.exit_code == 0 and "Read-only file system" in done.stderr


def test_a_failed_write_leaves_nothing(own, monkeypatch):
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(evaluations.NearplaneError, match="No space left"):
        evaluations.append_evaluations(own, [{"kind": "text"}])
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before


def test_runs_that_end_together_lose_nothing(own):
    def append(number):
        for turn in range(5):
            evaluations.append_evaluations(own, [{"number": number, "turn": turn}])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(append, range(3)))
    entries = json.loads((own / "report.json").read_text())["evaluations"]
    assert sorted((e["number"], e["turn"]) for e in entries) == [
        (number, turn) for number in range(3) for turn in range(5)
    ]
    assert not verify_sums(own)


def test_what_cannot_be_measured_is_refused_before_a_model_is_opened(
    nearplane, text, tmp_path, monkeypatch
):
    monkeypatch.setattr("nearplane.cli.evaluate.open_any", lambda *_: pytest.fail("opened"))
    refused(nearplane("eval", "model"), "--text", "--tasks")
    refused(nearplane("eval", "model", "--text", tmp_path / "no.txt", "--text", text), "no.txt")
    refused(nearplane("eval", "model", "--text", text, "--text", text), "twice")
    refused(nearplane("eval", "model", "--text", text, "--questions", "5"), "--questions")
    refused(nearplane("eval", "model", "--tasks", "quiz", "--context", "64"), "--context")
    refused(nearplane("eval", "model", "--tasks", "quiz", "--fewshot", "-1"), "-1")
    monkeypatch.setattr("nearplane.evaluate.tasks.find_spec", lambda _: None)
    refused(nearplane("eval", "model", "--tasks", "quiz"), 'pip install "nearplane[tasks]"')


def test_all_texts_are_one_step_of_which_the_time_left_is_told(
    nearplane, checkpoint, texts, monkeypatch
):
    told = []
    monkeypatch.setattr(PlainLines, "progress", lambda _, name, share: told.append((name, share)))
    nearplane("eval", checkpoint, *texts, *CUT, "--no-record")
    shares = [share for _, share in told]
    assert {name for name, _ in told} == {"evaluating"}
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1 and 0.5 in shares


def test_tables_keep_their_columns():
    assert table(["a", "b"], [["long", "1"], ["x", "22"]]) == ["a     b", "long  1", "x     22"]

"""A run that is ended leaves nothing that loads, keeps what is finished, and is gone on with."""

import random
import signal
import time
from pathlib import Path
from subprocess import CompletedProcess

import pytest

import nearplane as npl
from tests import forked
from tests.cli import tiny

LEDGER = ".out.unfinished"
LAYERS = 12  # of the model that takes long enough to be killed in the middle


@pytest.fixture(scope="module")
def long_run(tmp_path_factory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("long"), layers=LAYERS)


@pytest.fixture(scope="module")
def whole(long_run, text, tmp_path_factory) -> dict[str, bytes]:
    """Return the files of a run that nobody ended."""
    place = tmp_path_factory.mktemp("whole")
    assert started(long_run, text, place).wait().returncode == 0
    return content(place / "out")


def started(model: Path, text: Path, place: Path, *more: str) -> forked.Started:
    words = ["quantize", str(model), str(place / "out"), "--calibration", str(text), *tiny.SMALL]
    return forked.Started("nearplane", *words, *more)


def content(out: Path) -> dict[str, bytes]:
    """Return all that a checkpoint is, but for the times in its report and their sum."""
    free = {"report.json", "report.html", "SHA256SUMS"}
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name not in free}


def ended(run: forked.Started, how: int, layer: int, later: float = 0.0) -> CompletedProcess:
    """Send the signal some seconds after so many layers are done; returns how the run ended."""
    try:
        while run.going and f"\n[{layer}/" not in run.said():
            time.sleep(0.005)
        time.sleep(later)
        run.send_signal(how)
        return run.wait(timeout=60)
    finally:
        run.kill()


@pytest.mark.parametrize("how, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_polite_signal_leaves_what_is_finished_and_says_so(long_run, text, tmp_path, how, status):
    run = ended(started(long_run, text, tmp_path), how, 3)
    assert run.returncode == status
    assert [path.name for path in tmp_path.iterdir()] == [LEDGER]
    assert "finished layers are kept" in run.stderr and "go on with --resume" in run.stderr


def test_a_kill_leaves_nothing_that_loads_and_is_gone_on_with(long_run, text, tmp_path, whole):
    run = ended(started(long_run, text, tmp_path), signal.SIGKILL, 5)
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    for left in tmp_path.iterdir():
        with pytest.raises(npl.NearplaneError):
            npl.load(left)
    assert started(long_run, text, tmp_path, "--resume").wait().returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "the next run clears up"
    assert content(tmp_path / "out") == whole


def test_an_unfinished_run_is_refused_unasked(long_run, text, tmp_path):
    ended(started(long_run, text, tmp_path), signal.SIGTERM, 3)
    again = started(long_run, text, tmp_path).wait()
    assert again.returncode == 1 and "go on with --resume" in again.stderr


@pytest.mark.long
def test_fifty_kills_lose_no_layer_and_change_no_bit(long_run, text, tmp_path, whole):
    """Runs are killed at random moments, most of them several times, and end at the same bits."""
    moments, kills, number = random.Random(1), 0, 0
    while kills < 50:
        place, most = tmp_path / str(number), 0
        place.mkdir()
        number += 1
        while not (place / "out").exists():
            run = started(long_run, text, place, "--resume")
            if moments.random() < 0.8 and kills < 50:
                layer = min(7 * LAYERS, most + moments.randint(1, 40))
                kills += (
                    ended(run, signal.SIGKILL, layer, moments.random() * 0.3).returncode
                    == -signal.SIGKILL
                )
            else:
                assert run.wait().returncode == 0
            kept = len(list((place / LEDGER).glob("0*.safetensors")))
            assert kept >= most or (place / "out").exists()
            most = kept
        assert content(place / "out") == whole


def test_main_exits_with_the_status_of_a_failure(tmp_path):
    started = time.perf_counter()
    run = forked.run("nearplane", "inspect", tmp_path / "no")
    assert run.returncode == 1 and run.stderr.startswith("error: ") and not run.stdout
    assert time.perf_counter() - started < 30

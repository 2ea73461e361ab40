"""A run that is killed leaves nothing that loads, and nothing at all if it could clean up."""

import signal
import subprocess
import sys
import time

import pytest

import nearplane as npl
from tests.cli import tiny

RUN = "import torch; torch.set_num_threads(1); from nearplane.cli import main; main()"


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """Return a model that takes long enough to be killed in the middle."""
    return tiny.write_model(tmp_path_factory.mktemp("long"), layers=40)


def killed_in_the_middle(model, text, place, how):
    """Start quantize, send the signal when a few layers are done, and return the finished run."""
    words = ["quantize", str(model), str(place / "out"), "--calibration", str(text), *tiny.SMALL]
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for line in run.stderr:
            if line.startswith("[3/"):
                break
        assert list(place.iterdir()), "the run should be at work"
        run.send_signal(how)
        run.communicate(timeout=30)
    finally:
        run.kill()
    return run


@pytest.mark.parametrize("how, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_polite_signal_leaves_nothing(long_run, text, tmp_path, how, status):
    run = killed_in_the_middle(long_run, text, tmp_path, how)
    assert run.returncode == status
    assert not list(tmp_path.iterdir())


def test_a_kill_leaves_nothing_that_loads(long_run, model_dir, text, tmp_path, nearplane):
    run = killed_in_the_middle(long_run, text, tmp_path, signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert not (tmp_path / "out").exists() and len(left) == 1
    with pytest.raises(npl.NearplaneError):
        npl.load(left[0])
    again = nearplane(
        "quantize", model_dir, tmp_path / "out", "--calibration", text, *tiny.SMALL, "--skip", "mlp"
    )
    assert again.exit_code == 0, again.output
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "the next run clears up"


def test_main_exits_with_the_status_of_a_failure(tmp_path):
    started = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", RUN, "inspect", str(tmp_path / "no")], capture_output=True, text=True
    )
    assert run.returncode == 1 and run.stderr.startswith("error: ") and not run.stdout
    assert time.perf_counter() - started < 30

"""Every bench runs to its end in its tiny form; workers of peers start and answer without them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked

BENCH = Path(__file__).parents[2] / "bench"
SERVED = {"generate_worker.py"}  # what other benches start
BENCHES = [
    path.name
    for path in sorted(BENCH.glob("*.py"))
    if "__main__" in path.read_text() and path.name not in SERVED
]
PEERS = sorted(path.name for path in (BENCH / "peers").glob("*.py"))
RUNS = [name for name in PEERS if name.endswith("_run.py")]
WORKERS = [name for name in PEERS if name.endswith("_worker.py")]
# what is imported of the peers, which are not installed here
LIBRARIES = [
    "auto_round",
    "compressed_tensors.quantization",
    "datasets",
    "gguf",
    "gptqmodel",
    "llama_cpp",
    "llmcompressor.modifiers.gptq",
    "onnx",
    "onnxruntime",
]
ANYTHING = """from unittest.mock import MagicMock
__path__ = [{path!r}]
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return MagicMock()
"""


def run(*arguments: str | Path, **environment: str) -> str:
    """Run a Python program; return what it said."""
    command = [sys.executable, *map(str, arguments)]
    told = os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCH, env=told)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> str:
    """Return a folder of modules that stand for the peers and have whatever is asked of them."""
    folder = tmp_path_factory.mktemp("libraries")
    for library in LIBRARIES:
        place = folder
        for part in library.split("."):
            place = place / part
            place.mkdir(exist_ok=True)
            (place / "__init__.py").write_text(ANYTHING.format(path=str(place)))
    return str(folder)


@pytest.mark.parametrize("bench", BENCHES)
def test_a_bench_runs_to_its_end(bench):
    if "TRITON_INTERPRET" in (BENCH / bench).read_text():
        assert run(BENCH / bench, "--tiny")  # before Triton is imported
        return
    done = forked.run(BENCH / bench, "--tiny", folder=BENCH)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize("program", RUNS)
def test_what_runs_a_peer_starts(program, libraries):
    path = BENCH / "peers" / program
    done = forked.run(path, "--help", folder=BENCH, PYTHONPATH=libraries)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "usage: " in done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize("program", WORKERS)
def test_a_worker_of_a_peer_answers(program, libraries, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH / "peers"))
    monkeypatch.setenv("PYTHONPATH", libraries)
    from pipe import Worker, WorkerError

    worker = Worker(sys.executable, BENCH / "peers" / program, tmp_path / "log")
    try:
        with pytest.raises(WorkerError, match="KeyError: 'nothing'"):
            worker("nothing")
    finally:
        worker.close()
    assert worker.process.returncode == 0

"""Benches that have a tiny form run to their end in it, and what README cites explains itself."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
ASKED = "bench/{} --tiny"
NAMES = sorted(p.name for p in BENCH.glob("*.py") if ASKED.format(p.name) in p.read_text())


@pytest.mark.parametrize("bench", [name for name in NAMES if name != "gpu.py"])
def test_a_bench_runs_to_its_end(bench):
    run([str(BENCH / bench), "--tiny"])


@pytest.mark.parametrize("module", ["cpu", "generate", "quality", "speed"])
def test_what_readme_cites_loads_and_explains_itself(module):
    run([str(BENCH / f"{module}.py"), "--help"])


def run(arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=BENCH)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr

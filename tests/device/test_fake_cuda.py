"""What a run on a GPU holds, copies and waits for, counted on tensors without numbers.

In a process of its own: the device has to be there before torch is imported.
"""

import json
import subprocess
import sys

import pytest

from tests import forked
from tests.device.test_another_device import pytestmark as pytestmark

REAL = [
    f"{model}_{method}"
    for model in ("llama_8b", "qwen3_30b_a3b", "llama_405b")
    for method in ("hptq", "eclq")
]


def wrong(*checks: str) -> list[str]:
    command = [sys.executable, "-m", "tests.device.cuda_program", *checks]
    done = subprocess.run(command, cwd=forked.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
    return json.loads(done.stdout.splitlines()[-1])


def test_small_models_on_cuda():
    assert wrong("narrow_and_wide", "targets") == []


@pytest.mark.long
@pytest.mark.parametrize("check", ["gradients", "waiting", "planted"])
def test_more_small_models_on_cuda(check):
    assert wrong(check) == []


@pytest.mark.long
@pytest.mark.parametrize("check", REAL)
def test_models_of_real_sizes_on_cuda(check):
    assert wrong(check) == []

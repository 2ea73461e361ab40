"""Runs on another device give what runs on the CPU give, byte for byte, and stay in its memory.

The device is tests/device/fake_device.cpp, in a process of its own: torch cannot forget a device.
"""

import json
import shutil

import pytest

from tests import forked

CHECKS = [
    "methods",
    "float64",
    "narrow",
    "places",
    "planned",
    "refused",
    "out_of_memory",
    "planted",
    "transfers",
    "bench",
]
FAMILIES = ["gpt2", "mixtral", "gemma3_text", "bloom"]
OTHERS = [
    "qwen3_moe",
    "falcon",
    "gpt_oss",
    "qwen2",
    "gemma2",
    "phi3",
    "opt",
    "gpt_neox",
    "olmoe",
    "deepseek_v3",
]

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")


def wrong(*words: str) -> list[str]:
    done = forked.run("tests.device.program", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_on_another_device(check):
    assert wrong(check) == []


def test_without_float64():
    assert wrong("without_float64", "ssqr") == []


@pytest.mark.long
def test_more_methods_without_float64():
    assert wrong("without_float64", "eclq", "gptq", "hptq", "hrtn", "rtn") == []


def test_families_on_another_device():
    assert wrong("families", *FAMILIES) == []


@pytest.mark.long
@pytest.mark.parametrize("family", OTHERS)
def test_more_families_on_another_device(family):
    assert wrong("families", family) == []

"""The library on processors that this machine is not: under qemu-user, which knows no AVX-512."""

import shutil
import subprocess
from pathlib import Path

import pytest

from nearplane.kernels.cpu.find import find
from nearplane.kernels.cpu.library import available

SOURCES = Path(__file__).parents[2] / "nearplane" / "kernels" / "cpu" / "src"
QEMU = shutil.which("qemu-x86_64")
COMPILER = shutil.which("g++")
pytestmark = [
    pytest.mark.skipif(find() is None, reason="the kernels were not built"),
    pytest.mark.skipif(COMPILER is None, reason="there is no g++"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program that opens the library and compares its results with their definition."""
    made = tmp_path_factory.mktemp("program") / "open_library"
    source = Path(__file__).with_name("open_library.cpp")
    command = [COMPILER, "-std=c++17", "-O1", "-rdynamic", f"-I{SOURCES}", source, "-o", made]
    subprocess.run([*map(str, command), "-ldl"], check=True)
    return made


def said(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout.split("\n")


@pytest.mark.skipif(QEMU is None, reason="qemu-user is not installed")
@pytest.mark.parametrize("processor, best", [("Nehalem", "plain"), ("Haswell", "avx2")])
def test_no_processor_is_killed(program, processor, best):
    lines = said(QEMU, "-cpu", processor, program, find(), "products")
    assert f"chosen {best}" in lines


def test_every_instruction_set_of_this_processor_multiplies(program):
    lines = said(program, find(), "products")
    assert [line for line in lines if line.startswith("available")] == [
        f"available {name}" for name in available()
    ]


def test_memory_that_is_short_ends_no_process(program):
    said(program, find(), "memory")

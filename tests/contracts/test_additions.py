"""A method, a code, an instruction set, an export: each is one file and one line, as shown here."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from nearplane import codes
from nearplane.codes.corrupt import require
from tests.cli.conftest import checkpoint, model_dir, nearplane, text
from tests.forked import run

__all__ = ["checkpoint", "model_dir", "nearplane", "text"]

ROOT = Path(__file__).parents[2]
BESIDE = Path(sys.executable).with_name("cmake")
CMAKE = str(BESIDE) if BESIDE.exists() else shutil.which("cmake")

METHOD = Path(__file__).with_name("toy_method.py")
TOY = ("--method", "toygrid", "--levels", "60", "--reach", "4")


def commanded(*arguments: object) -> str:
    """Return what the command line prints when the toy's file is loaded beside nearplane."""
    done = run(METHOD, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_method_in_one_file_is_planned_run_verified_and_inspected(model_dir, text, tmp_path):
    out, calibration = tmp_path / "out", ("--calibration", text, "--sequences", "4")
    planned = commanded("plan", model_dir, *TOY, "--sequences", "4", "--length", "32")
    assert "toygrid" in planned and "time: about" in planned
    commanded("quantize", model_dir, out, *TOY, *calibration, "--length", "32")
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["recipe"]["method"] == "toygrid" and config["recipe"]["levels"] == 60
    assert "wrong" not in commanded("verify", out, "--against", model_dir)
    inspected = commanded("inspect", out)
    assert "a toy has no bound" in inspected and "q_proj" in inspected


TOY_KERNELS = """
#include "kernels.h"
namespace nearplane {
extern const Kernels toy_kernels;
const Kernels toy_kernels = [] { Kernels made = plain_kernels; made.name = "toy"; return made; }();
}
"""
LOAD = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.np_chosen.restype = library.np_name.restype = ctypes.c_char_p
assert library.np_available(b"toy")
print(library.np_chosen().decode(), library.np_name(1).decode())
"""


def with_toy(line: str) -> str:
    """Return a line of the list, and the toy's line after the list's beginning."""
    return line + '  X(toy, "-O1", true) \\\n' if "define NEARPLANE_X86_SETS(X)" in line else line


@pytest.mark.skipif(not (CMAKE and shutil.which("g++")), reason="there is no C++ compiler")
def test_an_instruction_set_is_a_file_and_a_line(tmp_path):
    source = "nearplane/kernels/cpu/src"
    shutil.copytree(ROOT / source, tmp_path / source)
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    (tmp_path / source / "toy.cpp").write_text(TOY_KERNELS)
    table = tmp_path / source / "instruction_sets.h"
    table.write_text("".join(map(with_toy, table.read_text().splitlines(keepends=True))))
    asked = ["-S", tmp_path, "-B", tmp_path / "build", "-DCMAKE_BUILD_TYPE=Debug"]
    for command in (asked, ["--build", tmp_path / "build", "--target", "nearplane_cpu"]):
        done = subprocess.run([CMAKE, *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    cache = (tmp_path / "build" / "CMakeCache.txt").read_text()
    if "NEARPLANE_X86:INTERNAL=1" not in cache:
        pytest.skip("this compiler has no kernels for x86")
    library = str(tmp_path / "build" / "nearplane_cpu.so")
    asked = [sys.executable, "-c", LOAD, library]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "toy"


@dataclass(frozen=True)
class ToyCode:
    """Four bytes an integer: a code in one file, as `codes/registry.py` describes it."""

    name: ClassVar[str] = "toy"
    tag: ClassVar[int] = 200
    most_per_byte: ClassVar[int] = 1

    def encode(self, integers: np.ndarray) -> bytes:
        return integers.astype("<i4").tobytes()

    def decode(self, buffer: bytes | memoryview, rows: int, columns: int) -> tuple:
        size = 4 * rows * columns
        require(len(buffer) >= size, "the integers are cut short")
        return np.frombuffer(buffer[:size], "<i4").reshape(rows, columns).copy(), size

    def bound(self, values: np.ndarray, counts: np.ndarray) -> int:
        return 4 * int(counts.sum())


def test_a_code_is_a_file_and_a_line():
    code = torch.randint(-9, 9, (7, 30), dtype=torch.int32)
    step = torch.full((1, 1), 0.5)
    codes.register(ToyCode())
    try:
        record, code_bytes = codes.pack(code, step, 30, None, ToyCode())
        assert code_bytes == 4 * code.numel() and codes.inspect(record).code_tag == 200
        assert torch.equal(codes.unpack(record).code, code)
        with pytest.raises(codes.CorruptError):
            codes.unpack(record[:-20])
    finally:
        del codes.CODES[200]

"""Files compiled for an instruction set define a table of kernels, and nothing that runs unasked.

A constructor in such a file would run when the library is opened, and an inline function that it
shares with another file might be the one that the linker keeps for all.
"""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("avx2", "avx_vnni", "avx512", "avx512_bf16")
TOOLS = ("cmake", "g++", "nm", "readelf")
PLANTED = "\n#include <string>\nstd::string made(3, 'x');\n"


def tool(name):
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


pytestmark = pytest.mark.skipif(not all(map(tool, TOOLS)), reason="cmake, g++ or binutils lacks")


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """File -> how CMakeLists.txt compiles it."""
    build = tmp_path_factory.mktemp("build")
    asked = ["-S", ROOT, "-B", build, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", "--log-level=ERROR"]
    subprocess.run([tool("cmake"), *map(str, asked)], check=True, capture_output=True)
    entries = json.loads((build / "compile_commands.json").read_text())
    found = {Path(entry["file"]).stem: shlex.split(entry["command"]) for entry in entries}
    if not set(FILES) <= set(found):
        pytest.skip("this compiler has no kernels for x86")
    return found


def compiled(command, source, target):
    """Compile one file as CMake would, but in less time."""
    start = [word for word in command[: command.index("-o")] if word != "-O3"]
    subprocess.run([*start, "-O1", "-o", str(target), "-c", str(source)], check=True)
    return target


def faults(target, name):
    """Return what an object file must not have."""
    sections = subprocess.run([tool("readelf"), "-SW", target], capture_output=True, text=True)
    found = [part for part in (".init_array", ".ctors") if part in sections.stdout]
    symbols = subprocess.run([tool("nm"), "-C", target], capture_output=True, text=True).stdout
    for line in symbols.splitlines():
        kind, symbol = line[17], line[19:]
        if kind.isupper() and kind != "U" or kind in "wvu":
            found += [] if symbol == f"nearplane::{name}_kernels" else [f"{kind} {symbol}"]
    return found


@pytest.mark.parametrize("name", FILES)
def test_nothing_runs_before_the_choice(commands, tmp_path, name):
    source = ROOT / "nearplane" / "kernels" / "cpu" / "src" / f"{name}.cpp"
    assert not faults(compiled(commands[name], source, tmp_path / "made.o"), name)


def test_a_constructor_is_noticed(commands, tmp_path):
    planted = tmp_path / "avx2.cpp"
    source = ROOT / "nearplane" / "kernels" / "cpu" / "src" / "avx2.cpp"
    text = source.read_text().replace('"avx2.inc"', f'"{source.with_suffix(".inc")}"')
    planted.write_text(text + PLANTED)
    assert ".init_array" in faults(compiled(commands["avx2"], planted, tmp_path / "made.o"), "avx2")

"""With a compiler the kernels are there; without them, or without the folder, all else works."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nearplane.kernels.cpu.find import find
from tests.export import tiny

ROOT = Path(__file__).parent.parent.parent
COMPILERS = [name for name in ("c++", "g++", "clang++") if shutil.which(name)]

IMPORTED = "imported"
IMPORT = f"""
import nearplane, sys
from pathlib import Path
assert Path(nearplane.__file__).parent.parent == Path.cwd(), nearplane.__file__
print("{IMPORTED}", file=sys.stderr)
"""
RUN = """
import torch
from tests.export import tiny
model, plain = nearplane.load("model"), nearplane.load("model", dequantize=True)
layer = model.model.layers[0].mlp.up_proj
assert layer.form == "record" and layer.laid is None, layer
assert torch.equal(tiny.logits(model), tiny.logits(plain))
"""
REFUSE = """
from nearplane.codes import resident
for call in (resident.stored, resident.value):
    try:
        call(torch.zeros(9, dtype=torch.uint8), "cpu", 3, 3)
    except ValueError as error:
        assert str(error) == "the form 'cpu' needs kernels that are not here: load the model again"
    else:
        raise AssertionError(call)
"""


@pytest.mark.skipif(not COMPILERS, reason="no C++ compiler")
def test_the_kernels_are_built_where_there_is_a_compiler():
    assert find() is not None, f"{COMPILERS} is here: `make` should have built nearplane_cpu"


@pytest.fixture
def bare(tmp_path) -> Path:
    """Return a copy of the package without the library, and of what writes a tiny model."""
    ignored = shutil.ignore_patterns("*.so", "*.dll")
    for name in ("nearplane", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    return tmp_path


def run(program: str, folder: Path) -> str:
    """Run a program with the package in `folder`; return what importing said on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT + program], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.partition(IMPORTED)[0]


def test_without_the_library_one_line_warns_and_all_works(bare):
    tiny.write(tiny.llama(), bare / "model")
    said = run(RUN, bare)
    # Python names the place of a warning, and shows the line there
    [line] = [line for line in said.splitlines() if not line.startswith(" ")]
    assert re.search(r"UserWarning: .*without a C\+\+ compiler.*install g\+\+", line)


def test_without_the_folder_nothing_is_said_and_all_works(bare):
    shutil.rmtree(bare / "nearplane" / "kernels")
    tiny.write(tiny.llama(), bare / "model")
    assert run(RUN + REFUSE, bare) == ""

"""The CUDA kernels, compiled for every GPU by NVRTC: no spills, and as many warps as planned."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

from nearplane.codes.header import COLUMN, GROUP, SCALAR
from nearplane.kernels.gpu.cuda import launches, nvrtc
from nearplane.kernels.gpu.cuda.launches import Launch
from nearplane.kernels.gpu.cuda.programs import Program
from nearplane.kernels.gpu.cuda.sections import KIND, Shape, sections
from nearplane.kernels.gpu.header import Head

triton = pytest.importorskip("triton", reason="its wheel has the tools that read machine code")
pytestmark = pytest.mark.skipif(not nvrtc.capabilities(), reason="NVRTC is not installed")

CAPABILITIES = (80, 86, 89, 90, 100)
REGISTERS = 65536  # of a multiprocessor, from 80 to 100 alike
CODED = {"bits": 0, "tile_columns": 512, "scale": 0.01, "data_bytes": 6_500_000, "tile_bytes": 3600}
DENSE = {"window": 0, "tables": 0, "fields": 0, "ordered": 0, "tile_bytes": 0, "scale": 1.0}
FLOAT16, LADDER = 1, 19


def head(form: int, step_type: int, **shape: float) -> Head:
    """Return the head of a layer of 4096 x 4096."""
    made = Shape(tiles=4096 // shape["tile_columns"], sparse=10_000, **shape)
    end = sections(4096, 4096, form, step_type, made)["end"]
    group = made.wide_group if form == GROUP else 4096
    return Head(KIND, end, end, 4096, 4096, group, form, step_type, 0, 0, 0, made.own())


def coded(window: int, fields: int, form: int = SCALAR) -> Head:
    step_type = LADDER if form == COLUMN else 0
    about = {"window": window, "tables": 2 * fields - 1, "fields": fields, "wide_group": 4096}
    return head(form, step_type, ordered=int(fields > 1), **about, **CODED)


def planes(bits: int, group: int) -> Head:
    data = bits * 4096 * 4096 // 8
    return head(
        GROUP, FLOAT16, bits=bits, wide_group=group, tile_columns=256, data_bytes=data, **DENSE
    )


HEADS = {
    "window of 6 bits": coded(6, 1),
    "7 bits": coded(7, 1),
    "8 bits": coded(8, 1),
    "6 bits, 4 tables, steps of columns": coded(6, 4, COLUMN),
    "2 bits": planes(2, 128),
    "3 bits": planes(3, 128),
    "4 bits": planes(4, 64),
    "8 bits, groups of 96": planes(8, 96),
}


def launch(name: str, batch: int, dtype: torch.dtype) -> Launch:
    made, x = HEADS[name], torch.empty(batch, 4096, dtype=dtype)
    return launches.product(torch.empty(0, dtype=torch.uint8), made, x, None, x)


def resources(cubin: bytes) -> dict[str, int]:
    """Return the registers of a thread, and the bytes of its stack and local memory."""
    tool = next(Path(triton.__file__).parent.rglob("cuobjdump"), None) or shutil.which("cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = text.split("Function")[1].replace(":", " ").split()
    return {name: int(words[words.index(name) + 1]) for name in ("REG", "STACK", "LOCAL")}


def check(program: Program, capability: int, blocks: int) -> None:
    """Nothing is spilled, and so many thread blocks have registers at a time."""
    held = resources(nvrtc.cubin(program, capability))
    assert held["STACK"] == 0 and held["LOCAL"] == 0
    # registers are given to warps in eighths
    assert -(-held["REG"] // 8) * 8 * program.threads * blocks <= REGISTERS


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", HEADS)
def test_products_of_one_row_spill_nothing_and_24_warps_fit(name, capability):
    check(launch(name, 1, torch.bfloat16).program, capability, 3)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    "batch, dtype, blocks",
    [
        (8, torch.bfloat16, 3),
        (16, torch.bfloat16, 2),
        (32, torch.bfloat16, 1),
        (10, torch.float32, 1),
    ],
    ids=str,
)
def test_products_of_more_rows_spill_nothing(batch, dtype, blocks, capability):
    for name in ("6 bits, 4 tables, steps of columns", "3 bits"):
        numbers = batch * (3 if dtype == torch.float32 or name[0] == "6" else 1)
        fits = blocks if numbers == batch else 1
        check(launch(name, batch, dtype).program, capability, fits)


@pytest.mark.parametrize("rest", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_decoding_spills_nothing(capability, rest):
    """Each kind for every GPU, and each program for two or three of them: a second to compile."""
    names = "7 bits", "6 bits, 4 tables, steps of columns", "3 bits", "8 bits, groups of 96"
    turn = CAPABILITIES.index(capability) + rest
    for number, name in enumerate(names):
        dtype = (torch.bfloat16, torch.int32)[(number + turn) % 2]
        out = torch.empty(1, dtype=dtype)
        made = launches.weight(torch.empty(0, dtype=torch.uint8), HEADS[name], out)
        check(made.program, capability, 1)


@pytest.mark.parametrize("name", HEADS)
def test_shared_memory_leaves_room_for_24_warps(name):
    """Of the 164 KiB that an A100's multiprocessor has, 1 KiB a thread block for the system.

    32 KiB of tables leave room for 16. Every product fits the 99 KiB that a thread block may have
    on the smallest of these GPUs.
    """
    made = launch(name, 1, torch.bfloat16)
    fit = (164 << 10) // (made.shared + launches.RESERVED)
    large = name.startswith("8 bits") and HEADS[name].own[0] or "4 tables" in name
    assert fit * made.program.threads >= (16 if large else 24) * 32
    for dtype in (torch.bfloat16, torch.float32):
        for batch in (2, 8, launches.most_rows(HEADS[name], dtype)):
            assert launch(name, batch, dtype).shared <= launches.MOST_SHARED


def test_a_program_that_cannot_be_compiled_says_why():
    broken = Program("product", 32, (("BITS", 3),))
    with pytest.raises(nvrtc.CompileError, match="product for sm_80: .*undefined"):
        nvrtc.cubin(broken, 80)

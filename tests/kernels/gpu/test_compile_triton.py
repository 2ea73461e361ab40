"""Triton kernels compiled for GPUs that are not here, as they are started; their machine code."""

import os
import re

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets in this process", allow_module_level=True)

from bench import sass  # noqa: E402
from nearplane.kernels.gpu import k_best, nearest_plane  # noqa: E402
from nearplane.kernels.gpu.header import Head  # noqa: E402
from nearplane.kernels.gpu.portable import layout as layouts  # noqa: E402
from nearplane.kernels.gpu.portable import plan, start  # noqa: E402

NVIDIA, AMD = (80, 86, 89, 90, 100), "gfx942"
PROCESSORS = 108
BF16, F32 = torch.bfloat16, torch.float32
REGISTERS = 65536  # of a multiprocessor
WIDE_SEARCHES = ((3, F32), (8, torch.float64))


@pytest.fixture(autouse=True)
def clean_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def gpu(name: int | str):
    from triton.backends.compiler import GPUTarget

    return GPUTarget("hip", name, 64) if name == AMD else GPUTarget("cuda", name, 32)


def head(bits: int, size: int = 128, columns: int = 4096, form: int = 2) -> Head:
    """Return the head of a matrix with outliers and steps in float16."""
    own = bits, layouts.BIAS - 2 ** (bits - 1), 1, 2000
    return Head(layouts.KIND, 0, 0, 4096, columns, size, form, 1, 2, bits, 1, own)


def product(made: Head, dtype: torch.dtype, batch: int, has_bias: bool = False):
    """Return a product's launch and the types of its tensors."""
    planned = plan.few if batch <= plan.MOST_FEW else plan.many
    launch = planned(made, dtype, batch, has_bias, PROCESSORS)
    result = F32 if launch.splits > 1 else dtype
    return launch, {"x": dtype, "layout": torch.uint8, "bias": dtype, "y": result}


def leaf(dtype: torch.dtype, **types: torch.dtype):
    """Return a leaf with tensors of these types beside those that all leaves have."""
    lists = "table", "at_row", "at_column"
    shapes = {name: (16,) if name in lists else (16, 16) for name in types}
    fields = {name: torch.empty(shapes[name], dtype=each) for name, each in types.items()}
    rounding = nearest_plane.Rounding(-4, 3, span=1, **fields)
    types |= dict.fromkeys(("target", "unit", "best", "error"), dtype) | {"code": torch.int32}
    return rounding.launch(4096, 4096, 0, 32), types


def search(dtype: torch.dtype, paths: int):
    """Return a leaf of the K-best search."""
    names = ("target", "unit", "best", "error", "price", "column_cost")
    types = dict.fromkeys(names, dtype) | {"cost": torch.float64, "parent": torch.int64}
    types |= dict.fromkeys(("code", "at_row", "at_column"), torch.int32)
    return k_best.launch_of(4096, 4096, (0, 32), 10, paths), types


def others():
    """Return launches of the remaining kernels."""
    made = head(3)
    decoded = {"layout": torch.uint8, "out": BF16}
    return {
        "combine": (plan.combine(made, 4, 8, True), {"partial": F32, "bias": BF16, "y": BF16}),
        "decode": (plan.decode(made), decoded),
        "decode_outliers": (plan.decode_outliers(made), decoded),
        "leaf": leaf(F32),
        "leaf, steps, float64": leaf(torch.float64, step=torch.float64),
        "leaf, prices": leaf(F32, table=F32, at_row=torch.int32, at_column=torch.int32),
        "leaf, levels": leaf(F32, step=F32, table=F32),
        "leaf, outliers": leaf(F32, step=F32, outlier=torch.float16, is_outlier=torch.uint8),
        "search, 2 paths": search(F32, 2),
        "search, 8 paths": search(F32, 8),
    }


def wide_searches():
    return {f"{paths} paths, {dtype}": search(dtype, paths) for paths, dtype in WIDE_SEARCHES}


def built(launch, types, name: int | str) -> dict[str, int]:
    """Compile and return registers of a thread, bytes that spilled, shared bytes of a program.

    For an NVIDIA GPU also the instructions of the main loop, if it has one.
    """
    made = start.compiled(launch, gpu(name), **types)
    used = {"shared": made.metadata.shared}
    if name == AMD:
        text = made.asm["amdgcn"]
        found = re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count): +(\d+)", text)
        count = {key: int(number) for key, number in found}
        spilled = count["vgpr_spill_count"] + count["sgpr_spill_count"]
        return used | {"registers": count["vgpr_count"], "spilled": spilled}
    taken = sass.resources(made.asm["cubin"])
    used |= {"registers": taken["REG"], "spilled": taken["STACK"] + taken["LOCAL"]}
    if launch.kernel.startswith("product"):
        used["loop"] = len(sass.inner_loop(made.asm["cubin"]))
    return used


def check_few(made: Head, dtype: torch.dtype, batch: int, name: int | str) -> float:
    """Four programs of 4 warps a multiprocessor for one row, two for two, one for more.

    So 16 warps have 16 or 12 loads of 512 bytes under way each, which hides the memory's latency.
    Returns the main loop's instructions a weight.
    """
    launch, types = product(made, dtype, batch)
    used, shape = built(launch, types, name), layouts.geometry_of(made)
    assert used["spilled"] == 0
    if name != AMD:
        programs = {1: 4, 2: 2}.get(batch, 1)
        assert used["registers"] * 32 * launch.warps * programs <= REGISTERS
    # sums of four warps, for each of R tiles and each row of activations
    assert used["shared"] <= 4 * 32 * launch.warps * launch.constants["R"] * launch.constants["B"]
    return used.get("loop", 0) / (launch.constants["R"] * shape.run * shape.fields * 4)


@pytest.mark.parametrize("bits, most", [(2, 2.95), (3, 3.1), (4, 3.25)])
def test_one_row_of_activations(bits, most):
    """An A100 issues 1.95e13 a second, counted in lanes, and reads 1.55 TB/s.

    At 2, 3 and 4 bits and a step of 16 in 128 columns it has time for 3.3, 4.9 and 6.5.
    """
    assert check_few(head(bits), BF16, 1, 80) <= most


@pytest.mark.parametrize("name", [*NVIDIA[1:], AMD])
def test_one_row_on_every_gpu(name):
    assert check_few(head(3), BF16, 1, name) <= 3.15


@pytest.mark.parametrize("kernel", others())
def test_the_other_kernels(kernel):
    launch, types = others()[kernel]
    used = built(launch, types, 80)
    assert used["spilled"] == 0
    # a search holds the errors and the codes of 32 columns, in programs of one warp
    most = (176, 2048) if launch.kernel == "search" else (128, 1024)
    assert used["registers"] <= most[0] and used["shared"] <= most[1]


def check_many(bits: int, batch: int, dtype: torch.dtype, name: int | str) -> None:
    """Two programs a multiprocessor."""
    launch, types = product(head(bits), dtype, batch)
    used = built(launch, types, name)
    assert used["spilled"] == 0 and used["shared"] <= 48 * 1024
    assert name == AMD or used["registers"] * 32 * launch.warps * 2 <= REGISTERS


@pytest.mark.parametrize("batch", [8, 64])
def test_many_rows_of_activations(batch):
    check_many(3, batch, BF16, 80)


@pytest.mark.long
@pytest.mark.parametrize("name", [*NVIDIA, AMD])
@pytest.mark.parametrize("bits", range(1, 9))
def test_every_width_on_every_gpu(bits, name):
    for dtype in (BF16, F32):
        for batch in (1, 2, 4):
            check_few(head(bits), dtype, batch, name)
        for batch in (8, 64):
            check_many(bits, batch, dtype, name)


@pytest.mark.long
@pytest.mark.parametrize("name", [*NVIDIA, AMD])
def test_every_form_on_every_gpu(name):
    """Padding, groups of one unit, one step, one a column."""
    for made in (head(3, 31), head(3, 64, 576), head(4, 4096, form=0), head(4, 4096, form=1)):
        check_few(made, BF16, 1, name)
    for launch, types in (others() | wide_searches()).values():
        assert built(launch, types, name)["spilled"] == 0

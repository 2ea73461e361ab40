"""Errors planted in the kernels: what the tests here compare must notice every one."""

import faulthandler
import os
from pathlib import Path

import pytest
import torch

from nearplane.kernels.gpu.cuda import linear
from nearplane.kernels.gpu.cuda.programs import SOURCES
from tests.kernels.accuracy import assert_product
from tests.kernels.forms import gaussian
from tests.kernels.gpu import test_cuda_shapes as shapes
from tests.kernels.gpu.cases import GpuCase, case, laid_out
from tests.kernels.gpu.host import Host, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")

CODED = "rans, columns on a ladder"
DENSE = "dense, 3 bits, groups, outliers 0.05"


def wide() -> GpuCase:
    """Several tiles, of several passes."""
    return laid_out(shapes.coded(20, 9000))


def apart() -> GpuCase:
    """Integers beyond every table."""
    code = torch.zeros(20, 600)
    code[::3, ::7] = 900 * torch.sign(gaussian(7, 86))
    return laid_out(shapes.packed(code, torch.tensor([[0.5]])))


def sorted_() -> GpuCase:
    code = torch.from_numpy(shapes.spread(2, 400, 1600, 1.0, 1.0)).round()
    return laid_out(shapes.packed(code, torch.exp2(gaussian(1, 1600)).half().float()))


# what is compared: a product with bf16, one with float32, and the decoded weight
BF16, FLOAT, WEIGHT, MANY = "bf16", "float32", "weight", "33 rows"
LAST_LEFT_OUT = "= row.begin; i + 1 < row.end; i += 2) {\n        const int"
WRONG_HALF = "const float high = times(codes[2 * i]"
PLANTED = [
    # a file, what it says, what it says then, the matrix, what notices
    ("product.cu", "column_tile >= args.tiles", "column_tile + 1 >= args.tiles", wide, BF16),
    ("product.cu", "row_block >= args.row_blocks", "row_block + 1 >= args.row_blocks", CODED, BF16),
    ("product.cu", "16 * (lane % LANES_OF_ROW)", "16 * (lane % LANES_OF_ROW ^ 1)", CODED, BF16),
    ("product.cu", "split < args.splits; ++split", "split + 1 < args.splits; ++split", wide, BF16),
    ("product.cu", "part < PARTS; ++part) total", "part + 1 < PARTS; ++part) total", CODED, FLOAT),
    ("product.cu", "i < row.end; i += 2", "i + 1 < row.end; i += 2", DENSE, BF16),
    ("product.cu", "shuffle_xor(beside[n], 1)", "0", DENSE, BF16),
    ("product.cu", "at_step, step + 8)", "at_step, step)", DENSE, BF16),
    ("product.cu", "step += ROWS, left", "left", DENSE, BF16),
    ("product.cu", "--left != 0", "left != 1", "dense, 3 bits, groups, outliers None", BF16),
    ("product.cu", "        block_barrier();  // the last stage was read\n", "", wide, FLOAT),
    ("product.cu", "THREADS);\n        block_barrier();\n", "THREADS);\n", wide, BF16),
    ("product.cu", "            await_copies();\n            warp_barrier();\n", "", CODED, BF16),
    (
        "product.cu",
        "await_copies();\n            warp_barrier();\n",
        "await_copies();\n",
        CODED,
        BF16,
    ),
    ("product.cu", "*raise = RAISE", "*raise = 0", DENSE, BF16),
    ("product.cu", "(n < N ? n : 0) * stride", "0 * stride", CODED, FLOAT),
    ("lanes.cuh", "            next += 4;\n", "", CODED, BF16),
    ("lanes.cuh", "if (used & 32) {", "if (used & 32 && next[0] & 1) {", CODED, BF16),
    ("lanes.cuh", "            low = high;\n", "", CODED, BF16),
    ("lanes.cuh", "end - length - BELOW", "end - BELOW", CODED, BF16),
    ("lanes.cuh", "(tiles[1].first + 3) / 4", "tiles[1].first / 4", wide, BF16),
    ("lanes.cuh", "tiles[0].first % 4 * 4", "0", wide, BF16),
    ("lanes.cuh", "if (lane >= by) end", "if (lane > by) end", CODED, BF16),
    ("lanes.cuh", "below = field <<", "below = 0 * field <<", sorted_, BF16),
    ("planes.cuh", "(words[2] & top) >> 13", "(words[2] & top) >> 12", DENSE, BF16),
    ("planes.cuh", "i * BITS - at;", "i * BITS;", DENSE, BF16),
    ("planes.cuh", "128 * back + OFFSET", "128 + OFFSET", DENSE, BF16),
    ("planes.cuh", "twice_bf16(16)", "twice_bf16(8)", "dense, 6 bits, a step a row", BF16),
    ("planes.cuh", "first + 2) >> at & 1", "first + 1) >> at & 1", DENSE, WEIGHT),
    ("sparse.cuh", "if (lane >= by) end", "if (lane > by) end", DENSE, BF16),
    ("sparse.cuh", "lane % 2;", "0;", DENSE, BF16),
    ("activations.cuh", "if (part + 1 < PARTS) x", "if (part < 1) x", CODED, FLOAT),
    (
        "activations.cuh",
        "? group * args.group +",
        "? group * args.wide_group +",
        "dense, 4 bits, groups of 31",
        BF16,
    ),
    ("activations.cuh", "column >= args.columns) return ~0u", "false) return ~0u", sorted_, WEIGHT),
    ("activations.cuh", "args.at_row)[row]", "args.at_row)[row ^ 1]", sorted_, BF16),
    ("weight.cu", "ends[2 * table + (more > 0)]", "ends[2 * table]", apart, WEIGHT),
    (
        "weight.cu",
        "= row.begin; i < row.end; i += 2) {\n        const int",
        LAST_LEFT_OUT,
        apart,
        WEIGHT,
    ),
    ("weight.cu", "pairs + BLOCK_WORDS, chunk", "pairs, chunk", DENSE, WEIGHT),
    ("weight.cu", "down < args.rows && ", "", DENSE, WEIGHT),
    ("weight.cu", "column + 2 * i + 1)", "column + 2 * i)", sorted_, MANY),
    ("weight.cu", "const float high = times(codes[2 * i + 1]", WRONG_HALF, sorted_, MANY),
]


def agrees(made: GpuCase, what: str) -> bool:
    """Whether what is compared is right, whichever thread runs first."""
    for backwards in (False, True):
        linear.MACHINES["cpu"].backwards = backwards
        try:
            if what == WEIGHT:
                assert torch.equal(made.value().double(), made.weight)
            else:
                x = gaussian(33 if what == MANY else 2, made.columns)
                x = x if what == FLOAT else x.to(torch.bfloat16)
                assert_product(made, x, made.product(x))
        except AssertionError:
            return False
    return True


@pytest.mark.parametrize("planted", PLANTED, ids=lambda each: f"{each[0]}: {each[1].strip()[:40]}")
def test_a_planted_error_is_noticed(planted, monkeypatch, tmp_path):
    name, right, wrong, matrix, what = planted
    made = case(matrix) if isinstance(matrix, str) else matrix()
    for file in Path(str(SOURCES)).iterdir():
        text = file.read_text()
        if file.name == name:
            assert text.count(right) == 1, f"{right!r} is not once in {name}"
            text = text.replace(right, wrong)
        (tmp_path / file.name).write_text(text)
    monkeypatch.setitem(linear.MACHINES, "cpu", Host(sources=tmp_path))
    child = os.fork()  # a kernel that writes anywhere may end it
    if not child:
        faulthandler.disable()
        os._exit(0 if agrees(made, what) else 1)
    assert os.waitpid(child, 0)[1] != 0

"""Shapes that fill nothing, borders of tiles, and every way in which work is cut."""

import numpy as np
import pytest
import torch
from torch import Tensor

from nearplane import codes
from nearplane.kernels.gpu.cuda import launches, layout
from nearplane.types import Outliers
from tests.codes.draw import spread
from tests.kernels.accuracy import assert_product
from tests.kernels.forms import gaussian, packed
from tests.kernels.gpu.cases import GpuCase, laid_out

SHAPES = [(1, 1), (1, 33), (15, 64), (16, 65), (17, 513), (33, 31), (130, 129), (5, 1025)]


def check(made: GpuCase, batch: int = 1, dtype: torch.dtype = torch.bfloat16) -> None:
    assert torch.equal(made.value().double(), made.weight)
    assert torch.equal(made.stored(), made.record)
    x = gaussian(batch, made.columns).to(dtype)
    assert_product(made, x, made.product(x))


def coded(rows: int, columns: int, sigma: float = 2.0) -> Tensor:
    """Return a record of integers with one step."""
    return packed(spread(1, rows, columns, sigma, 0.0), torch.tensor([[0.0123]]))


def dense(rows: int, columns: int, group: int, sparse: Outliers | None = None) -> Tensor:
    """Return a record of codes of 3 bits in groups."""
    code = np.random.default_rng(1).integers(-4, 4, (rows, columns))
    group = min(group, columns)
    step = gaussian(rows, -(-columns // group)).half().float()
    return packed(code, step, group, sparse, codes.Dense(3))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_coded_integers_of_any_shape(shape, host):
    check(laid_out(coded(*shape)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_planes_of_any_shape(shape, host):
    check(laid_out(dense(*shape, group=64)))


@pytest.mark.parametrize("group", [16, 32, 48, 96, 128, 256, 300])
def test_groups_of_any_size(group, host):
    check(laid_out(dense(17, 600, group)))


def at(places: list[tuple[int, int]], values: list[float], rows: int) -> Outliers:
    """Return outliers at these places, in the order of rows."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    row = torch.tensor([places[i][0] for i in order])
    start = torch.nn.functional.pad(torch.bincount(row, minlength=rows).cumsum(0), (1, 0))
    column = torch.tensor([places[i][1] for i in order], dtype=torch.int32)
    value = torch.tensor([values[i] for i in order], dtype=torch.float16)
    return Outliers(start.to(torch.int32), column, value)


def test_outliers_on_the_borders_of_tiles(host):
    """Each is a power of two of its own, so that no other can stand in for it."""
    rows, columns = 35, 600
    tiles = laid_out(dense(rows, columns, 64)).shape
    width = tiles.tile_columns
    corners = [0, width - 1, width, 2 * width - 1, 2 * width, columns - 1]
    places = [(r, c) for r in (0, 7, 8, 15, 16, 31, 32, 34) for c in corners]
    values = [2.0 ** (i % 12) for i in range(len(places))]
    made = laid_out(dense(rows, columns, 64, at(places, values, rows)))
    assert made.shape.sparse == len(places) and made.shape.tiles == 3
    check(made)
    check(made, 5, torch.float32)


def test_outliers_of_one_row_may_fill_a_tile_but_for_one(host):
    columns = 256
    most = at([(3, c) for c in range(255)], [1.5] * 255, 17)
    check(laid_out(dense(17, columns, 64, most)))
    all_of_them = at([(3, c) for c in range(256)], [1.5] * 256, 17)
    record = dense(17, columns, 64, all_of_them)
    assert layout.pack(record, torch.device("cpu")) is None


def test_integers_beyond_every_table_on_the_borders_of_tiles(host):
    code = np.zeros((35, 1100), np.int64)
    made = laid_out(packed(code, torch.tensor([[0.5]])))
    width = made.shape.tile_columns
    for i, row in enumerate((0, 7, 8, 15, 16, 34)):
        for j, column in enumerate((0, width - 1, width, 2 * width, 1099)):
            code[row, column] = (-1) ** j * (5000 + 10 * i + j)
    made = laid_out(packed(code, torch.tensor([[0.5]])))
    assert made.shape.sparse >= 30
    check(made)
    check(made, 3, torch.float32)


def test_integers_too_large_for_what_is_beside_them():
    code = np.zeros((35, 100), np.int64)
    code[0, 0] = 1 << 20
    assert layout.pack(packed(code, torch.tensor([[0.5]])), torch.device("cpu")) is None


def test_streams_of_very_different_lengths(host):
    """A byte holds how much longer than the shortest a stream is: shorter ones are filled up."""
    code = np.zeros((16, 512), np.int64)
    code[3] = np.random.default_rng(1).integers(-31, 32, 512)
    check(laid_out(packed(code, torch.tensor([[0.5]]))))


def test_a_matrix_of_zeros(host):
    check(laid_out(packed(np.zeros((20, 40), np.int64), torch.tensor([[0.5]]))))


def test_rows_and_columns_of_different_sizes_are_sorted(host):
    """Codes of their own for fields of a row group, and outputs back in their places."""
    code = np.rint(spread(2, 400, 1600, 1.0, 1.0))
    made = laid_out(packed(code, torch.exp2(gaussian(1, 1600)).half().float()))
    assert made.shape.ordered and made.shape.fields > 1 and made.shape.tables > made.shape.fields
    check(made)
    check(made, 3, torch.float32)
    check(made, 33)  # through a weight that is decoded as it is laid out


@pytest.mark.parametrize("batch, dtype", [(1, torch.bfloat16), (10, torch.float32)], ids=str)
@pytest.mark.parametrize("made", [coded, dense], ids=["coded", "planes"])
def test_activations_that_come_in_several_stages(made, batch, dtype, host):
    columns = 17000 if batch == 1 else 2500
    record = made(18, columns) if made is coded else made(18, columns, 128)
    case = laid_out(record)
    x = torch.zeros(batch, columns, dtype=dtype)
    args = launches.product(case.layout, case.head, x, None, x).args
    assert args.passes > args.stage
    check(case, batch, dtype)


def test_warps_that_share_columns_and_warps_that_share_rows(host):
    """One row block for 8 warps, and 8 row blocks: each whole and with some idle."""
    for rows, columns, splits in ((40, 4096, 8), (130, 500, 1), (40, 1300, 3), (20, 3500, 7)):
        case = laid_out(coded(rows, columns))
        x = torch.zeros(1, columns, dtype=torch.bfloat16)
        assert launches.product(case.layout, case.head, x, None, x).args.splits == splits
        check(case)

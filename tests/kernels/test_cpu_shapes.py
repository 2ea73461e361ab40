"""Any shape and any integers. Sums of small integers have no rounding: they must be exact."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nearplane import codes
from nearplane.codes import resident
from nearplane.kernels import cpu
from nearplane.types import Outliers
from tests.codes.draw import INT32, laws, matrices
from tests.kernels.accuracy import assert_product
from tests.kernels.forms import Case, laid_out, packed

TYPES = (torch.float32, torch.float16, torch.bfloat16)
CODERS = (codes.Huffman(), codes.Rans(), codes.Dense())
SIDES = [*range(1, 41), 64, 65, 127, 128, 129, 130, 255, 256, 257, 300]
SMALL_STEPS = torch.tensor([0.5, 1.0, -2.0])


def integers(seed: int, rows: int, columns: int, reach: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-reach, reach, (rows, columns), endpoint=True)


def some_outliers(seed: int, rows: int, columns: int, rate: float) -> Outliers | None:
    """Return outliers that are small integers, none of them zero."""
    random = np.random.default_rng(seed)
    there = random.random((rows, columns)) < rate
    if not there.any():
        return None
    start = torch.from_numpy(np.append(0, there.sum(1).cumsum()).astype(np.int32))
    column = torch.from_numpy(there.nonzero()[1].astype(np.int32))
    value = torch.from_numpy(random.integers(1, 99, len(column)).astype(np.float16))
    return Outliers(start, column, value)


def small_steps(seed: int, rows: int, columns: int) -> Tensor:
    return SMALL_STEPS[
        torch.from_numpy(np.random.default_rng(seed).integers(0, 3, (rows, columns)))
    ]


def assert_exact(made: Case, seed: int, batch: int, dtype: torch.dtype) -> None:
    """300 terms of at most 2 · (2 · 1500 + 99), or more of smaller ones: exact below 2^24."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, (batch, made.columns), generator=random).to(dtype)
    expected = (x.double() @ made.weight.T).float().to(dtype)
    for name in cpu.available():
        cpu.choose(name)
        assert torch.equal(made.product(x), expected), name
        assert torch.equal(made.value().double(), made.weight), name
        some = torch.randint(0, made.rows, (2, 5), generator=random)
        assert torch.equal(made.value_rows(some, dtype), made.weight[some].to(dtype)), name


@pytest.mark.parametrize("grouped", [False, True])
def test_small_integers_are_exact_for_every_number_of_rows(grouped):
    for rows in SIDES:
        columns = rows * 7 % 67 + 1
        size = rows % columns + 1 if grouped else columns
        shape = (rows, -(-columns // size)) if grouped else (1, columns)
        code, step = integers(rows, rows, columns, 3), small_steps(rows, *shape)
        made = laid_out(packed(code, step, size, some_outliers(rows, rows, columns, 0.05)))
        for batch in (1, 2 + rows % 9):
            assert_exact(made, rows, batch, TYPES[rows % 3])


def test_small_integers_are_exact_for_every_number_of_columns():
    for columns in SIDES:
        rows = columns * 5 % 53 + 1
        made = laid_out(packed(integers(columns, rows, columns, 5), torch.tensor([[0.5]])))
        for batch in (1, 2 + columns % 9):
            assert_exact(made, columns, batch, TYPES[columns % 3])


@pytest.mark.parametrize("bits", range(1, 9))
def test_small_integers_are_exact_for_groups_of_every_size(bits):
    for size in (1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 100, 129, 130):
        code = integers(size, 35, 130, 2**31) % 2**bits - 2 ** (bits - 1)
        made = laid_out(packed(code, small_steps(size, 35, -(-130 // size)), size))
        assert made.head.planes == 1 + (bits > 4)
        assert_exact(made, size, 1 + size % 3, TYPES[size % 3])


@pytest.mark.parametrize(("rows", "columns"), [(33_000, 3), (3, 66_000)])
@pytest.mark.parametrize("size", [None, 2])
def test_small_integers_are_exact_in_more_than_16_bits_of_rows_or_columns(rows, columns, size):
    """Rows and columns of unequal spread, so that a layout may move them."""
    code = integers(0, rows, columns, 3)
    code[::2] //= 3
    code[:, ::2] //= 3
    shape = (1, columns) if size is None else (rows, -(-columns // size))
    some = some_outliers(0, rows, columns, 0.01)
    made = laid_out(packed(code, small_steps(0, *shape), size, some))
    for batch in (1, 3):
        assert_exact(made, 0, batch, torch.float32)


@st.composite
def small_cases(draw) -> Case:
    rows, columns = draw(st.sampled_from(SIDES)), draw(st.sampled_from(SIDES))
    seed, reach = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0, 1, 3, 20, 127, 1500]))
    code = integers(seed, rows, columns, reach)
    if draw(st.booleans()):  # mostly zeros
        code[np.random.default_rng(seed).random(code.shape) < 0.9] = 0
    kind = draw(st.sampled_from(["scalar", "column", "group"]))
    size = draw(st.integers(1, columns)) if kind == "group" else columns
    shape = {"scalar": (1, 1), "column": (1, columns), "group": (rows, -(-columns // size))}[kind]
    assume(kind != "group" or reach < 128)  # such groups are left to the reference
    some = some_outliers(seed, rows, columns, draw(st.sampled_from([0, 0.002, 0.05, 0.5])))
    coder = draw(st.sampled_from(CODERS))
    return laid_out(packed(code, small_steps(seed, *shape), size, some, coder))


@given(
    made=small_cases(),
    seed=st.integers(0, 999),
    batch=st.integers(1, 20),
    dtype=st.sampled_from(TYPES),
)
@settings(laws, max_examples=100)
def test_small_integers_are_exact(made, seed, batch, dtype):
    assert_exact(made, seed, batch, dtype)
    assert torch.equal(made.stored(), made.record)


def check_any(code: np.ndarray, coder: codes.Code) -> None:
    """Steps are such that the result fits into float16."""
    most = max(1, int(np.abs(code.astype(np.int64)).max()))
    made = laid_out(
        packed(code, torch.tensor([[2.0 ** -np.ceil(np.log2(most))]]), None, None, coder)
    )
    for name in cpu.available():
        cpu.choose(name)
        assert torch.equal(made.value().double(), made.weight)
        assert torch.equal(made.stored(), made.record)
        for dtype in TYPES:
            for batch in (1, 3):
                x = torch.randn(batch, made.columns, generator=torch.Generator().manual_seed(1))
                assert_product(made, x.to(dtype), made.product(x.to(dtype)))


SPECIAL = {
    "all zero": np.zeros((40, 70)),
    "all 5": np.full((40, 70), 5),
    "all -1000": np.full((33, 31), -1000),
    "all the smallest": np.full((33, 31), INT32.min),
    "one the largest": np.eye(1, 4000, 99) * INT32.max,
    "both extremes": np.where(integers(0, 30, 50, 1) > 0, INT32.min, INT32.max),
    "all escapes": integers(1, 40, 70, INT32.max),
    "all escapes of 24 bits": integers(2, 40, 70, 2**24),
    "a row of each size": 2.0 ** np.arange(31)[:, None] * integers(3, 31, 60, 1),
    "a column of each size": 2.0 ** np.arange(31) * integers(4, 60, 31, 1),
    "one row far from others": np.concatenate([np.zeros((200, 9)), np.full((1, 9), 2.0**30)]),
}


@pytest.mark.parametrize("coder", CODERS, ids=lambda coder: coder.name)
@pytest.mark.parametrize("name", SPECIAL)
def test_special_integers(name, coder):
    check_any(SPECIAL[name].astype(np.int32), coder)


@given(code=matrices(3000).filter(np.size), coder=st.sampled_from(CODERS))
@settings(laws, max_examples=60)
def test_any_integers(code, coder):
    check_any(code, coder)


def test_wide_integers_in_groups_are_left_to_the_reference():
    code, x = integers(0, 20, 64, 10**6), torch.randn(3, 64)
    record = packed(code, small_steps(0, 20, 4), 16)
    form, kept = resident.lay_out(record, 20, 64)
    assert form == resident.RECORD and kept is record
    expected = x @ resident.value(record, form, 20, 64).T
    assert torch.equal(resident.product(x, kept, form, 20), expected)


def test_a_layout_that_grows_much_is_left_to_the_reference():
    record = packed(integers(0, 300, 300, 3), small_steps(0, 300, 300), 1)
    assert resident.lay_out(record, 300, 300)[0] == resident.RECORD


@pytest.mark.parametrize("index", [-1, 40, 2**40])
def test_rows_that_are_not_there_are_refused(index):
    made = laid_out(packed(integers(0, 40, 30, 5), torch.ones(1, 1)))
    with pytest.raises(IndexError, match="from 0 to 39"):
        made.value_rows(torch.tensor([3, index]))
    assert made.value_rows(torch.empty(0, dtype=torch.long)).shape == (0, 30)

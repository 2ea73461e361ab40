from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearplane.codes import sparse
from nearplane.codes.corrupt import CorruptError
from nearplane.codes.sparse import SparseRows
from tests.codes import slow
from tests.codes.draw import outliers


def rows_of(seed: int, rows: int, columns: int, rate: float) -> SparseRows:
    drawn = outliers(seed, rows, columns, rate)
    return SparseRows(drawn.start.numpy(), drawn.column.numpy(), drawn.value.numpy())


SMALL = SparseRows(
    np.array([0, 2, 2, 3], np.int32),
    np.array([1, 6, 4], np.int32),
    np.array([0.5, -2, 1], np.float16),
)


@given(
    st.integers(0, 999),
    st.integers(1, 30),
    st.sampled_from([1, 2, 63, 64, 65, 300]),
    st.sampled_from([0, 0.01, 0.5, 1]),
)
def test_rows_come_back(seed, rows, columns, rate):
    original = rows_of(seed, rows, columns, rate)
    data = sparse.encode(original, columns)
    back, used = sparse.decode(data + b"garbage", rows, columns)
    assert used == len(data)
    for name in ("start", "column", "value"):
        a, b = getattr(original, name), getattr(back, name)
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
    longest = int(np.diff(original.start).max())
    assert sparse.sparse_bytes(rows, columns, len(original.column), longest) == len(data)
    read = slow.sparse(data, rows, columns)
    assert [list(row) for row in read] == [
        original.column[a:b].tolist()
        for a, b in zip(original.start, original.start[1:], strict=False)
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"column": np.array([6, 1, 4], np.int32)},
        {"column": np.array([1, 1, 4], np.int32)},
        {"column": np.array([1, 7, 4], np.int32)},
        {"column": np.array([-1, 6, 4], np.int32)},
        {"start": np.array([0, 2, 1, 3], np.int32)},
        {"start": np.array([1, 2, 2, 3], np.int32)},
        {"start": np.array([0, 2, 2, 2], np.int32)},
        {"value": np.array([1, np.inf, 1], np.float16)},
        {"value": np.array([1, np.nan, 1], np.float16)},
    ],
)
def test_rows_that_break_a_rule_are_a_value_error(change):
    with pytest.raises(ValueError):
        sparse.encode(replace(SMALL, **change), 7)


@pytest.mark.parametrize(
    "at, byte",
    [
        (0, 4),  # one entry more than the rows hold
        (4, 0),  # rows that cost nothing
        (4, 33),
        (5, 0x52),  # padding after the row counts
        (5, 0x11),  # two entries in all, not three
        (6, 0x36),  # columns 6 6
        (6, 0x0E),  # columns 6 1
        (6, 0x39),  # columns 1 7
        (9, 0x7C),  # infinity
    ],
)
def test_bytes_that_break_a_rule_are_refused(at, byte):
    data = bytearray(sparse.encode(SMALL, 7))
    assert sparse.decode(bytes(data), 3, 7)
    data[at] = byte
    with pytest.raises(CorruptError):
        sparse.decode(bytes(data), 3, 7)


def test_row_counts_of_32_bits_do_not_wrap():
    # 2^32 - 1 and 2 entries add up to 1 modulo 2^32
    data = sparse.HEADER.pack(1, 32) + b"\xff" * 4 + b"\2\0\0\0" + b"\0" + b"\0\x3c"
    with pytest.raises(CorruptError, match="rows hold 4294967297 entries"):
        sparse.decode(data, 2, 3)


def test_the_last_of_many_columns_is_out_of_range():
    data = sparse.HEADER.pack(1, 1) + b"\1" + b"\xff\xff\xff\x7f" + b"\0\x3c"
    with pytest.raises(CorruptError):
        sparse.decode(data, 1, 2**31 - 1)

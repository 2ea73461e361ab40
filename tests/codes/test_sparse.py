import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearplane.codes import sparse
from nearplane.codes.corrupt import CorruptError
from nearplane.codes.sparse import SparseRows
from tests.codes import slow
from tests.codes.draw import laws, outliers


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
@laws
def test_rows_come_back(seed, rows, columns, rate):
    original = rows_of(seed, rows, columns, rate)
    data = sparse.encode(original, columns)
    back, used = sparse.decode(data + b"garbage", rows, columns)
    assert used == len(data)
    for name in ("start", "column", "value"):
        a, b = getattr(original, name), getattr(back, name)
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
    # docs/formats/sparse.md, Size: as columns, or as gaps where that is shorter
    row_width = max(1, int(np.diff(original.start).max()).bit_length())
    count, width = len(original.column), (columns - 1).bit_length()
    as_columns = 5 + -(-row_width * rows // 8) + -(-width * count // 8) + 2 * count
    assert len(data) <= as_columns and (len(data) == as_columns or data[4] == 0)
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
        (4, 0),  # gaps, of which there are not enough bytes
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


@pytest.mark.parametrize("rate", [0.002, 0.01, 0.05, 0.2])
def test_places_cost_about_their_entropy(rate):
    original = rows_of(3, 576, 1536, rate)
    count = len(original.column)
    bits = 8 * (len(sparse.encode(original, 1536)) - 10) / count - 16
    p = count / (576 * 1536)
    entropy = -np.log2(p) - (1 - p) / p * np.log2(1 - p)
    # docs/formats/sparse.md: at most 0.09, and the last byte
    assert bits < entropy + 0.095 + 8 / count


WIDE = rows_of(1, 40, 300, 0.01)


def gaps(*head: int, rest: bytes = b"") -> bytes:
    """Return a header of count, 0, width and unary_bytes before `rest`."""
    return sparse.HEADER.pack(head[0], 0) + sparse.GAPS.pack(*head[1:]) + rest


def test_the_example_has_gaps():
    data = sparse.encode(WIDE, 300)
    assert data[4] == 0 and data[:10] == gaps(len(WIDE.column), *sparse.GAPS.unpack_from(data, 5))


def test_every_truncation_of_gaps_is_refused():
    data = sparse.encode(WIDE, 300)
    for size in range(len(data)):
        with pytest.raises(CorruptError):
            sparse.decode(data[:size], 40, 300)


# one entry, at the place 5 of 2 x 4: low bits 01 of width 2, then 0 1 in unary
ENTRY = bytes([0b01, 0b10]) + np.float16(1).tobytes()


def test_the_smallest_gap():
    rows, used = sparse.decode(gaps(1, 2, 1, rest=ENTRY), 2, 4)
    assert rows.start.tolist() == [0, 0, 1] and rows.column.tolist() == [1] and used == 14
    assert slow.sparse(gaps(1, 2, 1, rest=ENTRY), 2, 4) == [{}, {1: 1.0}]


@pytest.mark.parametrize(
    "data, rows",
    [
        (gaps(1, 32, 1, rest=bytes(4) + ENTRY), 2),  # a width beyond 31
        (gaps(1, 2, 2, rest=bytes([1, 2, 0]) + ENTRY[2:]), 2),  # a byte after the last one
        (gaps(1, 2, 0, rest=ENTRY[:1] + ENTRY[2:]), 2),  # no unary part
        (gaps(1, 2, 1, rest=bytes([1, 0]) + ENTRY[2:]), 2),  # no one in it
        (gaps(1, 2, 1, rest=bytes([1, 3]) + ENTRY[2:]), 2),  # two ones
        (gaps(1, 2, 1, rest=bytes([5, 2]) + ENTRY[2:]), 2),  # padding after the low part
        (gaps(1, 2, 1, rest=ENTRY), 1),  # beyond the matrix, by its low part
        (gaps(1, 2, 1, rest=bytes([0, 4]) + ENTRY[2:]), 2),  # by its high part
        (gaps(1, 31, 9, rest=bytes([0] * 4 + [0] * 8 + [1]) + ENTRY[2:]), 2),  # and by far
        (gaps(0, 2, 1, rest=b"\1"), 2),  # a one for nothing
        (gaps(0, 2, 1, rest=b"\0"), 2),  # a byte for nothing
        (gaps(1, 2, 1, rest=ENTRY[:2] + np.float16(np.inf).tobytes()), 2),
        (gaps(2**32 - 1, 0, 1, rest=ENTRY), 2),  # values without bytes
    ],
)
def test_gaps_that_break_a_rule_are_refused(data, rows):
    with pytest.raises(CorruptError):
        sparse.decode(data, rows, 4)


@given(st.binary(min_size=6, max_size=60), st.integers(0, 9), st.integers(0, 40))
@laws
def test_any_gaps_are_refused_or_can_be_stored_again(rest, count, width):
    data = gaps(count, width, rest[0] % 8, rest=rest[1:])
    try:
        rows, used = sparse.decode(data, 50, 70)
    except CorruptError:
        return
    assert used <= len(data)
    again, _ = sparse.decode(sparse.encode(rows, 70), 50, 70)
    assert np.array_equal(again.column, rows.column) and np.array_equal(again.start, rows.start)


def test_row_counts_of_32_bits_do_not_wrap():
    # 2^32 - 1 and 2 entries add up to 1 modulo 2^32
    data = sparse.HEADER.pack(1, 32) + b"\xff" * 4 + b"\2\0\0\0" + b"\0" + b"\0\x3c"
    with pytest.raises(CorruptError, match="rows hold 4294967297 entries"):
        sparse.decode(data, 2, 3)


@pytest.mark.parametrize("head", [sparse.HEADER.pack(2**30, 32), gaps(2**30, 0, 4)])
def test_promises_are_checked_before_memory_is_taken(head):
    data = head + (2**30).to_bytes(4, "little") + bytes(20)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError):
            sparse.decode(data, 1, 1)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_the_last_of_many_columns_is_out_of_range():
    data = sparse.HEADER.pack(1, 1) + b"\1" + b"\xff\xff\xff\x7f" + b"\0\x3c"
    with pytest.raises(CorruptError):
        sparse.decode(data, 1, 2**31 - 1)

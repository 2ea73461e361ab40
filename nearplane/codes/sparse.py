"""Sparse rows of float16 values <-> bytes (docs/formats/sparse.md)."""

import struct
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Int32

from nearplane.codes.corrupt import require
from nearplane.codes.dense import pack_bits, packed_bytes, unpack_bits, width_of
from nearplane.codes.reader import Reader

HEADER = struct.Struct("<IB")  # count, row_width


@dataclass(frozen=True)
class SparseRows:
    """Row i owns entries start[i] : start[i + 1], with columns strictly rising in a row."""

    start: Int32[np.ndarray, " rows_plus_one"]
    column: Int32[np.ndarray, " count"]
    value: Float16[np.ndarray, " count"]


def sparse_bytes(rows: int, columns: int, count: int, longest_row: int) -> int:
    """Return the size of `count` entries, at most `longest_row` of them in one row."""
    row_width = max(1, width_of(longest_row))
    indices = packed_bytes(row_width, rows) + packed_bytes(width_of(columns - 1), count)
    return HEADER.size + indices + 2 * count


def encode(sparse: SparseRows, columns: int) -> bytes:
    """Return row counts, columns and values, each packed on its own."""
    problem = _problem(sparse, columns)
    if problem:
        raise ValueError(problem)
    counts = np.diff(sparse.start)
    row_width = max(1, width_of(int(counts.max(initial=0))))
    indices = pack_bits(counts, row_width) + pack_bits(sparse.column, width_of(columns - 1))
    head = HEADER.pack(len(sparse.column), row_width)
    return head + indices + sparse.value.astype("<f2").tobytes()


def decode(buffer: bytes | memoryview, rows: int, columns: int) -> tuple[SparseRows, int]:
    """Return the rows and how many bytes at the start of `buffer` held them."""
    reader = Reader(buffer)
    count, row_width = reader.fields(HEADER, "sparse header")
    # "row_width MUST be in 1 .. 32", so that rows cost bytes
    require(1 <= row_width <= 32, f"row_width {row_width} is not in 1 .. 32")
    packed = reader.take(packed_bytes(row_width, rows), "row counts")
    start = np.zeros(rows + 1, np.int64)
    np.cumsum(unpack_bits(packed, row_width, rows), dtype=np.int64, out=start[1:])
    # "the row counts MUST add up to count"
    require(int(start[-1]) == count, f"rows hold {start[-1]} entries, the header says {count}")
    width = width_of(columns - 1)
    packed = reader.take(packed_bytes(width, count), "columns")
    raw = reader.take(2 * count, "values")
    column = unpack_bits(packed, width, count)
    value = np.frombuffer(raw, "<f2").astype(np.float16)
    sparse = SparseRows(start.astype(np.int32), column.astype(np.int32), value)
    problem = _problem(sparse, columns)
    require(not problem, problem)
    return sparse, reader.at


def _problem(sparse: SparseRows, columns: int) -> str:
    """Return what is wrong with the rows, or nothing."""
    start, column = sparse.start, sparse.column.astype(np.int64)
    if len(column) >= 2**31 or len(start) < 1 or len(sparse.value) != len(column):
        return f"{len(column)} columns, {len(sparse.value)} values, {len(start)} row starts"
    if start[0] != 0 or start[-1] != len(column) or (np.diff(start.astype(np.int64)) < 0).any():
        return "row starts must rise from 0 to the number of entries"
    if len(column) and not 0 <= column.min() <= column.max() < columns:
        return f"columns {column.min()} .. {column.max()} are not in 0 .. {columns - 1}"
    row = np.repeat(np.arange(len(start) - 1), np.diff(start))
    # "columns MUST rise strictly within a row"
    if (np.diff(row * columns + column) <= 0).any():
        return "columns must rise strictly within a row"
    return "" if np.isfinite(sparse.value).all() else "an outlier is not finite"

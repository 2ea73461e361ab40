"""Sparse matrices of float16 outliers <-> bytes (docs/formats/sparse.md)."""

import struct
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Int32, Int64

from nearplane.codes.corrupt import require
from nearplane.codes.dense import pack_bits, packed_bytes, unpack_bits, width_of
from nearplane.codes.gaps import (
    WIDEST,
    choose_width,
    gaps_between,
    pack_unary,
    positions,
    unpack_unary,
)
from nearplane.codes.reader import Reader

HEADER = struct.Struct("<IB")  # count, row_width
GAPS = struct.Struct("<BI")  # width, unary_bytes; after a header whose row_width is 0


@dataclass(frozen=True)
class SparseRows:
    """A CSR matrix: row i has the entries start[i] : start[i + 1], in rising order of columns."""

    start: Int32[np.ndarray, " rows_plus_one"]
    column: Int32[np.ndarray, " count"]
    value: Float16[np.ndarray, " count"]


def encode(sparse: SparseRows, columns: int) -> bytes:
    """Return the bytes of a sparse matrix: where its entries are, then their values.

    Where they are is stored as columns or as gaps, whichever is shorter.
    """
    problem = _problem(sparse, columns)
    if problem:
        raise ValueError(problem)
    values = sparse.value.astype("<f2").tobytes()
    return min(_as_columns(sparse, columns), _as_gaps(sparse, columns), key=len) + values


def decode(buffer: bytes | memoryview, rows: int, columns: int) -> tuple[SparseRows, int]:
    """Return the sparse matrix, and how many bytes at the start of `buffer` held it."""
    reader = Reader(buffer)
    count, row_width = reader.fields(HEADER, "sparse header")
    require(2 * count <= reader.left, f"{count} values are cut short")
    # "row_width MUST NOT exceed 32; 0 means that gaps follow"
    require(row_width <= 32, f"row_width {row_width} exceeds 32")
    if row_width:
        start, column = _read_columns(reader, rows, columns, count, row_width)
    else:
        start, column = _read_gaps(reader, rows, columns, count)
    value = np.frombuffer(reader.take(2 * count, "values"), "<f2").astype(np.float16)
    sparse = SparseRows(start.astype(np.int32), column.astype(np.int32), value)
    problem = _problem(sparse, columns)
    require(not problem, problem)
    return sparse, reader.at


def _as_columns(sparse: SparseRows, columns: int) -> bytes:
    """Return header, entries of each row, and the column of every entry."""
    counts = np.diff(sparse.start)
    row_width = max(1, width_of(int(counts.max(initial=0))))
    head = HEADER.pack(len(sparse.column), row_width)
    return head + pack_bits(counts, row_width) + pack_bits(sparse.column, width_of(columns - 1))


def _read_columns(
    reader: Reader, rows: int, columns: int, count: int, row_width: int
) -> tuple[np.ndarray, np.ndarray]:
    packed = reader.take(packed_bytes(row_width, rows), "row counts")
    start = np.zeros(rows + 1, np.int64)
    np.cumsum(unpack_bits(packed, row_width, rows), dtype=np.int64, out=start[1:])
    # "the row counts MUST add up to count"
    require(int(start[-1]) == count, f"rows hold {start[-1]} entries, the header says {count}")
    width = width_of(columns - 1)
    return start, unpack_bits(reader.take(packed_bytes(width, count), "columns"), width, count)


def _as_gaps(sparse: SparseRows, columns: int) -> bytes:
    """Return the gaps between entries in row-major order, Golomb-Rice coded (gaps.py)."""
    gap = gaps_between(_positions(sparse, columns))
    width = choose_width(gap)
    unary = pack_unary(gap >> width)
    head = HEADER.pack(len(gap), 0) + GAPS.pack(width, len(unary))
    return head + pack_bits(gap & ((1 << width) - 1), width) + unary


def _read_gaps(
    reader: Reader, rows: int, columns: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    width, unary_bytes = reader.fields(GAPS, "header of gaps")
    # "width MUST NOT exceed 31"
    require(width <= WIDEST, f"gaps of width {width} exceed {WIDEST}")
    packed = reader.take(packed_bytes(width, count), "low parts of gaps")
    high = unpack_unary(reader.take(unary_bytes, "high parts of gaps"), count)
    position = positions(high, packed, width, rows * columns)
    start = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(position // columns, minlength=rows), out=start[1:])
    return start, position % columns


def _positions(sparse: SparseRows, columns: int) -> Int64[np.ndarray, " count"]:
    """Return row · columns + column of every entry."""
    row = np.repeat(np.arange(len(sparse.start) - 1), np.diff(sparse.start))
    return row * columns + sparse.column


def _problem(sparse: SparseRows, columns: int) -> str:
    """Return what is wrong with the matrix, or an empty string."""
    start, column = sparse.start, sparse.column.astype(np.int64)
    if len(column) >= 2**31 or len(start) < 1 or len(sparse.value) != len(column):
        return f"{len(column)} columns, {len(sparse.value)} values, {len(start)} row starts"
    if start[0] != 0 or start[-1] != len(column) or (start[1:] < start[:-1]).any():
        return "row starts must rise from 0 to the number of entries"
    if len(column) and not 0 <= column.min() <= column.max() < columns:
        return f"columns {column.min()} .. {column.max()} are not in 0 .. {columns - 1}"
    # "columns MUST rise strictly within a row"
    if (np.diff(_positions(sparse, columns)) <= 0).any():
        return "columns must rise strictly within a row"
    return "" if np.isfinite(sparse.value).all() else "an outlier is not finite"

"""The record of a block of a quantized matrix, made from the record of the whole."""

import math

import torch
from jaxtyping import Bool, Float32, Int32, UInt8
from torch import Tensor

from nearplane.codes import record as records
from nearplane.codes.header import COLUMN, GROUP, Header
from nearplane.codes.registry import by_tag
from nearplane.types import Outliers


def cut(
    record: UInt8[Tensor, " bytes"], rows: range | None = None, columns: range | None = None
) -> UInt8[Tensor, " cut_bytes"]:
    """Return the record of a range of rows and columns of a matrix; None means all of them.

    value(cut(record, rows, columns)) = value(record)[rows, columns], exactly: integers, steps and
    outliers are not changed. They are encoded again by the same code, with new tables. If the
    columns begin inside a group, groups become smaller and their steps are repeated: see
    `shared_group`. For all rows and columns `record` itself is returned.

    Cost: decoding the record and encoding the block.
    """
    header = records.inspect(record)
    across = _checked(rows, header.rows, "rows")
    along = _checked(columns, header.columns, "columns")
    if (len(across), len(along)) == (header.rows, header.columns):
        return record
    held = records.unpack(record)
    code = held.code[across.start : across.stop, along.start : along.stop].contiguous()
    step, group_size = _cut_step(held.step, header, across, along)
    outliers = None if held.outliers is None else _cut_outliers(held.outliers, across, along)
    row_step = None if held.row_step is None else held.row_step[across.start : across.stop]
    minimum = None if held.minimum is None else _cut_step(held.minimum, header, across, along)[0]
    coder = by_tag(header.code_tag)
    return records.pack(code, step, group_size, outliers, coder, row_step, minimum)[0]


def shared_group(columns: range, group_size: int) -> int:
    """Return the largest group size for a block of columns so that no group has two steps.

    Groups of the block are counted from `columns.start`; groups of the matrix, from 0. Every
    border between groups of the matrix inside the block must also be one of the block. The result
    is `group_size` itself if the block begins where a group begins.
    """
    first = group_size - columns.start % group_size  # columns until the first border
    one_border = first + group_size >= len(columns)
    return min(first, len(columns)) if one_border else math.gcd(first, group_size)


def _checked(wanted: range | None, count: int, name: str) -> range:
    if wanted is None:
        return range(count)
    if wanted.step != 1 or not 0 <= wanted.start < wanted.stop <= count:
        raise ValueError(f"{name} {wanted.start} .. {wanted.stop} are no part of {count} {name}")
    return wanted


def _cut_step(
    step: Float32[Tensor, "step_rows step_columns"], header: Header, rows: range, columns: range
) -> tuple[Float32[Tensor, "cut_rows cut_columns"], int]:
    """Return the steps or minima of the block, and their group size."""
    if header.form_of_steps == COLUMN:
        return step[:, columns.start : columns.stop], len(columns)
    if header.form_of_steps != GROUP:
        return step, len(columns)
    group_size = shared_group(columns, header.group_size)
    # the group that the first column of each new group lies in
    group = torch.arange(columns.start, columns.stop, group_size, device="cpu") // header.group_size
    return step[rows.start : rows.stop][:, group], group_size


def _cut_outliers(outliers: Outliers, rows: range, columns: range) -> Outliers | None:
    """Return the outliers in the block, or None if there are none."""
    first, last = int(outliers.start[rows.start]), int(outliers.start[rows.stop])
    column = outliers.column[first:last]
    inside = (column >= columns.start) & (column < columns.stop)
    if not bool(inside.any()):
        return None
    start = _starts(outliers.start[rows.start : rows.stop + 1] - first, inside)
    return Outliers(start, column[inside] - columns.start, outliers.value[first:last][inside])


def _starts(
    start: Int32[Tensor, " rows_plus_one"], kept: Bool[Tensor, " count"]
) -> Int32[Tensor, " rows_plus_one"]:
    """Return the row starts of the sparse matrix that has only the `kept` entries."""
    before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
    return before[start.long()].to(torch.int32)

"""One quantized matrix <-> the bytes a checkpoint stores for it (docs/formats/record.md)."""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64, UInt8
from torch import Tensor

from nearplane.codes import ladder, sparse, steps
from nearplane.codes.corrupt import require
from nearplane.codes.header import (
    COLUMN_AND_ROW,
    CRC_BYTES,
    GROUP_AND_MINIMUM,
    LAYOUT,
    Header,
    read_header,
    step_form,
)
from nearplane.codes.host import on_host
from nearplane.codes.huffman import Huffman
from nearplane.codes.reader import Reader
from nearplane.codes.registry import Code, by_tag
from nearplane.op import Op
from nearplane.types import Outliers, value

# What the header of a safetensors file spends on one record: a name of 39 characters and
# {"dtype":"U8","shape":[1234567],"data_offsets":[123456789,123456789]}.
ENTRY_BYTES = 112
HUFFMAN = Huffman()


@dataclass(frozen=True)
class Unpacked:
    """What a record holds: value = row_step · step · code − minimum + outliers."""

    code: Int32[Tensor, "rows columns"]
    step: Float32[Tensor, "step_rows step_columns"]
    group_size: int
    outliers: Outliers | None
    row_step: Float32[Tensor, "rows 1"] | None = None
    minimum: Float32[Tensor, "rows groups"] | None = None

    def value(self) -> Float32[Tensor, "rows columns"]:
        """Return the weights that the record stands for."""
        parts = self.code, self.step, self.group_size, self.outliers
        return value(*parts, self.row_step, self.minimum)


@Op
def pack(
    code: Int32[Tensor, "rows columns"],
    step: Float[Tensor, "step_rows step_columns"],
    group_size: int,
    outliers: Outliers | None = None,
    coder: Code = HUFFMAN,
    row_step: Float32[Tensor, "rows 1"] | None = None,
    minimum: Float32[Tensor, "rows groups"] | None = None,
) -> tuple[UInt8[Tensor, " bytes"], int]:
    """Return the record of a matrix, and how many of its bytes are codes.

    - `step`: (1, 1) or (1, columns), with group_size = columns; or (rows, groups), the last group
      may be short. Stored without rounding, in 16 bits each where 16 bits hold every step
      exactly: see `steps.round_step`. A step that float32 cannot hold is a ValueError.
    - `coder`: the code that writes the integers.
    - `row_step`: factors of the rows beside one step a column, from `ladder_steps` with
      ladder.ROW_WIDTH bits; without outliers.
    - `minimum`: of every group, beside its step; without outliers, and never rounded either.
    """
    rows, columns = code.shape
    if not rows:
        raise ValueError("a record holds at least one row")
    form = step_form((step.shape[0], step.shape[1]), rows, columns, group_size)
    numbers = _exact32(step)
    if minimum is not None:
        shape = rows, -(-columns // group_size)
        if not step.shape == minimum.shape == shape or outliers is not None:
            raise ValueError("minima go with steps of (rows, groups), and no outliers")
        form, numbers = GROUP_AND_MINIMUM, np.concatenate([numbers, _exact32(minimum)])
    kind, step_part = steps.encode(numbers)
    if row_step is not None:
        alone = outliers is None and minimum is None
        if step.shape != (1, columns) or group_size != columns or not alone:
            raise ValueError("factors of rows go with one step for a column, and no outliers")
        form, step_part = COLUMN_AND_ROW, step_part + ladder.encode_rows(_exact32(row_step))
    code_part = coder.encode(np.ascontiguousarray(on_host(code)))
    sparse_part = b"" if outliers is None else sparse.encode(_to_rows(outliers, rows), columns)
    sizes = len(sparse_part), len(code_part)
    header = Header(coder.tag, form, kind, rows, columns, group_size, *sizes)
    body = b"".join((header.to_bytes(), step_part, code_part, sparse_part))
    # "CRC-32 of everything before it"
    record = bytearray(body + zlib.crc32(body).to_bytes(CRC_BYTES, "little"))
    return torch.frombuffer(record, dtype=torch.uint8), len(code_part)


def unpack(
    record: UInt8[Tensor, " bytes"] | bytes | memoryview,
    rows: int | None = None,
    columns: int | None = None,
) -> Unpacked:
    """Return what `record` holds; CorruptError unless every byte is as the format says.

    - `rows`, `columns`: the shape that the caller expects; another one is a CorruptError too.
    """
    view = _view(record)
    reader = Reader(view)
    header = read_header(reader)
    expected = rows in (None, header.rows) and columns in (None, header.columns)
    require(expected, f"a record of {header.rows} x {header.columns}, not {rows} x {columns}")
    crc = int.from_bytes(view[-CRC_BYTES:], "little")
    require(zlib.crc32(view[:-CRC_BYTES]) == crc, "the record's CRC-32 does not match its bytes")
    step_part = reader.take(header.step_bytes, "steps")
    numbers = steps.decode(step_part, header.step_type, header.step_count + header.minimum_count)
    step = torch.from_numpy(numbers[: header.step_count]).reshape(header.step_shape)
    minimum = None
    if header.minimum_count:
        minimum = torch.from_numpy(numbers[header.step_count :]).reshape(header.step_shape)
    row_step = _read_row_step(reader.take(header.row_step_bytes, "factors of rows"), header)
    code = _read_code(reader.take(header.code_bytes, "codes"), header)
    outliers = _read_outliers(reader.take(header.outlier_bytes, "outliers"), header)
    return Unpacked(code, step, header.group_size, outliers, row_step, minimum)


def inspect(record: UInt8[Tensor, " bytes"] | bytes | memoryview) -> Header:
    """Return the header, checked against the record's size, without reading the rest."""
    return read_header(Reader(_view(record)))


@Op
def price(
    values: Int64[np.ndarray, " distinct"],
    counts: Int64[np.ndarray, " distinct"],
    step_count: int = 1,
    coder: Huffman = HUFFMAN,
) -> int:
    """Estimate the bytes of a Huffman record without outliers from the histogram of its integers.

    - `values`: distinct and in rising order, as `alphabet.histogram` returns them.
    - `step_count`: how many steps; one is counted as 4 bytes, several as 2 bytes each.

    See `Huffman.predict` for what makes it an estimate.
    """
    step_bytes = 4 if step_count == 1 else 2 * step_count
    return record_bytes(step_bytes, coder.predict(values, counts))


def record_bytes(step_bytes: int, code_bytes: int) -> int:
    """Return the bytes of a record without outliers, given those of its steps and codes."""
    return LAYOUT.size + step_bytes + code_bytes + CRC_BYTES


def step_bytes(step: Float[Tensor, "step_rows step_columns"], rows: int = 0) -> int:
    """Return how many bytes of a record these steps take.

    - `rows`: how many have a factor; 0 where there is none.
    """
    return len(steps.encode(_exact32(step))[1]) + (ladder.row_bytes(rows) if rows else 0)


def _view(record: Tensor | bytes | memoryview) -> memoryview:
    if isinstance(record, Tensor):
        return record.detach().cpu().contiguous().numpy().data
    return memoryview(record).cast("B")


def _exact32(step: Float[Tensor, "rows groups"]) -> Float32[np.ndarray, " count"]:
    """Return the steps as a flat float32 array; ValueError if that would round one."""
    step = step.detach().cpu()
    exact = step.to(torch.float32)
    if not torch.equal(exact.to(step.dtype), step):
        raise ValueError("a step is not exact in float32 (or not a number): use round_step first")
    return exact.contiguous().numpy().reshape(-1)


def _to_rows(outliers: Outliers, rows: int) -> sparse.SparseRows:
    if len(outliers.start) != rows + 1:
        raise ValueError(f"outliers of {len(outliers.start) - 1} rows for a matrix of {rows}")
    parts = outliers.start, outliers.column, outliers.value
    return sparse.SparseRows(*(part.detach().cpu().contiguous().numpy() for part in parts))


def _read_code(part: memoryview, header: Header) -> Int32[Tensor, "rows columns"]:
    integers, used = by_tag(header.code_tag).decode(part, header.rows, header.columns)
    require(used == len(part), f"codes end after {used} of {len(part)} bytes")
    return torch.from_numpy(integers)


def _read_row_step(part: memoryview, header: Header) -> Float32[Tensor, "rows 1"] | None:
    if header.step_form != COLUMN_AND_ROW:
        return None
    return torch.from_numpy(ladder.decode_rows(part, header.rows))[:, None]


def _read_outliers(part: memoryview, header: Header) -> Outliers | None:
    # "outlier_bytes = 0 means that there is no outlier section"
    if not len(part):
        return None
    rows, used = sparse.decode(part, header.rows, header.columns)
    require(used == len(part), f"outliers end after {used} of {len(part)} bytes")
    return Outliers(*(torch.from_numpy(x) for x in (rows.start, rows.column, rows.value)))

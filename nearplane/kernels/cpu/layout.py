"""Records <-> layouts: the bytes that the C++ kernels multiply by.

A layout is made from a record when a model is loaded and never stored in a checkpoint. src/layout.h
defines it, docs/KERNELS.md explains it.
"""

import ctypes
import weakref
from typing import Any

import torch
from jaxtyping import Float, Int32, Int64, UInt8
from torch import Tensor

from nearplane import codes
from nearplane.codes.header import COLUMN, GROUP, Header
from nearplane.codes.record import Unpacked
from nearplane.kernels import coders
from nearplane.kernels.cpu.library import TYPES, Matrix, kernels
from nearplane.types import Outliers

FORM = "cpu"  # the name of this layout in nearplane/codes/resident.py
# a layout of more than MOST_GROWTH · record + FREE_BYTES bytes is not used: the record is then
# decoded at every use
MOST_GROWTH, FREE_BYTES = 1.5, 2**16
FAST_GROWTH = 2.0  # in place of MOST_GROWTH, for a layout that is asked to be fast
STEP_TYPES = {1: 1, 2: 2}  # float16 and bfloat16 steps are kept as such, all others become float32

# address of every layout that was made or checked here -> the tensor and the weight's shape
_known: dict[int, tuple["weakref.ref[Tensor]", tuple[int, int]]] = {}
# address of a layout -> what reading its rows needs to know, once that was asked
_readers: dict[int, int] = {}


def pack(record: UInt8[Tensor, " bytes"], input_bits: int = 0) -> UInt8[Tensor, " layout"] | None:
    """Return the layout of a record; None if these kernels cannot serve it or would not pay.

    - `input_bits`: 0 for prefix codes, with products that take activations as they are. 15 or 8 for
      codes of fixed width, which take more memory and less time, and integers of so many bits for
      activations.
    """
    lib = kernels()
    held, head = codes.unpack(record), codes.inspect(record)
    option = coders.option(record, head)
    if option is None or not coders.is_lossless(held):
        return None
    matrix, kept = _matrix(held, head)
    matrix.stored_bytes, matrix.coder, matrix.input_bits = len(record), option, input_bits
    size = ctypes.c_uint64()
    handle = lib.np_pack(ctypes.byref(matrix), torch.get_num_threads(), ctypes.byref(size))
    del kept
    if not handle:
        return None
    growth = FAST_GROWTH if input_bits else MOST_GROWTH
    if size.value > growth * len(record) + FREE_BYTES:
        lib.np_take(handle, None)
        return None
    layout = torch.empty(size.value, dtype=torch.uint8)
    lib.np_take(handle, layout.data_ptr())
    _remember(layout)
    return layout


def unpack(layout: UInt8[Tensor, " layout"]) -> UInt8[Tensor, " bytes"]:
    """Return the record that a layout was made from.

    ValueError if encoding its contents again does not give a record of the same size.
    """
    ensure_checked(layout)
    lib, head = kernels(), read_header(layout)
    code = torch.empty(head.rows, head.columns, dtype=torch.int32)
    lib.np_codes(layout.data_ptr(), code.data_ptr(), torch.get_num_threads())
    across = -(-head.columns // head.group_columns)
    shape = {COLUMN: (1, head.columns), GROUP: (head.rows, across)}.get(head.step_form, (1, 1))
    step = torch.empty(shape)
    lib.np_steps(layout.data_ptr(), step.data_ptr())
    coder, has_outliers = coders.coder(head.code_tag, head.coder)
    outliers = _outliers(layout, head.rows) if has_outliers else None
    group_size = head.group_columns if head.step_form == GROUP else head.columns
    row_step = torch.empty(head.rows, 1) if head.row_palette else None
    if row_step is not None:
        lib.np_row_steps(layout.data_ptr(), row_step.data_ptr())
    record = codes.pack(code, step, group_size, outliers, coder, row_step)[0]
    if len(record) != head.stored_bytes:
        raise ValueError(
            f"a record of {head.stored_bytes} bytes, by another encoder, cannot be made again: "
            "copy the checkpoint's files instead of saving the loaded model"
        )
    return record


def weight(layout: UInt8[Tensor, " layout"], dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
    """Return the weight step · code + outliers, computed in float32 and rounded to `dtype`."""
    out = torch.empty(ensure_checked(layout), dtype=dtype)
    kernels().np_weight(layout.data_ptr(), TYPES[dtype], out.data_ptr(), torch.get_num_threads())
    return out


def weight_rows(
    layout: UInt8[Tensor, " layout"], index: Int64[Tensor, " some"], dtype: torch.dtype
) -> Float[Tensor, "some columns"]:
    """Return some rows of the weight, in any order, computed in float32 and rounded to `dtype`.

    Rows lie in groups of 16, and a group is decoded whole. IndexError for a row that is not there.
    """
    rows, columns = ensure_checked(layout)
    address, lib, index = layout.data_ptr(), kernels(), index.long().contiguous()
    reader = _readers.get(address)
    if reader is None:
        reader = _readers[address] = lib.np_row_reader(address)
        if not reader:
            del _readers[address]
            raise MemoryError("no memory is left for a table of rows")
    out = torch.empty(len(index), columns, dtype=dtype)
    some = index.data_ptr(), len(index), TYPES[dtype], out.data_ptr()
    if not lib.np_rows(address, reader, *some, torch.get_num_threads()):
        raise IndexError(f"rows must be from 0 to {rows - 1}")
    return out


class Head(ctypes.Structure):
    """The header of a layout: `Header` in src/layout.h."""

    _fields_ = [
        ("magic", ctypes.c_char * 4),
        ("version", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("bytes", "stored_bytes")),
        *((name, ctypes.c_uint32) for name in ("rows", "columns", "pairs", "group_columns")),
        *((name, ctypes.c_uint32) for name in ("group_pairs", "planes", "segments", "tables")),
        *((name, ctypes.c_uint32) for name in ("code_tag", "step_form", "step_type", "palette")),
        *((name, ctypes.c_uint32) for name in ("shift", "window", "coder")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_uint32) for name in ("factor_bits", "exact_pairs", "row_palette")),
    ]


def read_header(layout: UInt8[Tensor, " layout"]) -> Head:
    """Return the header of a layout."""
    return Head.from_address(layout.data_ptr())


def ensure_checked(layout: UInt8[Tensor, " layout"]) -> tuple[int, int]:
    """Check every byte of a layout that a kernel relies on, and return the weight's shape.

    A tensor is checked only once. ValueError if it is not a valid layout.
    """
    known = _known.get(layout.data_ptr())
    if known is not None and known[0]() is layout:
        return known[1]
    if layout.dtype != torch.uint8 or layout.dim() != 1 or not layout.is_contiguous():
        raise ValueError(f"a layout is one row of bytes, not {layout.dtype} {list(layout.shape)}")
    wrong = kernels().np_check(layout.data_ptr(), len(layout))
    if wrong:
        raise ValueError(f"these {len(layout)} bytes are no layout: {wrong.decode()} is wrong")
    return _remember(layout)


def _remember(layout: Tensor) -> tuple[int, int]:
    address, head = layout.data_ptr(), read_header(layout)

    def forget(gone: "weakref.ref[Tensor]") -> None:
        if _known.get(address, (None,))[0] is gone:
            del _known[address]
            reader = _readers.pop(address, None)
            if reader is not None:
                kernels().np_free_row_reader(reader)

    shape = head.rows, head.columns
    _known[address] = weakref.ref(layout, forget), shape
    return shape


def _matrix(held: Unpacked, head: Header) -> tuple[Matrix, list[Any]]:
    """Return the C struct for a matrix, and the tensors that must outlive its pointers."""
    code, step = held.code.contiguous(), held.step.to(torch.float32).contiguous()
    step_type = STEP_TYPES.get(head.step_type, 0)
    shape = head.rows, head.columns, head.group_size
    numbers = *shape, head.form_of_steps, head.code_tag, step_type
    parts: list[Any] = [code, step, None, None, None, None]
    if held.row_step is not None:
        parts[2] = held.row_step.contiguous()
    if held.outliers is not None:
        some = held.outliers
        parts[3:] = [part.contiguous() for part in (some.start, some.column, some.value)]
    return Matrix(*numbers, *(None if part is None else part.data_ptr() for part in parts)), parts


def _outliers(layout: UInt8[Tensor, " layout"], rows: int) -> Outliers:
    lib, address = kernels(), layout.data_ptr()
    count = lib.np_outliers(address, None, None, None)
    start: Int32[Tensor, " rows_plus_one"] = torch.empty(rows + 1, dtype=torch.int32)
    column = torch.empty(count, dtype=torch.int32)
    value = torch.empty(count, dtype=torch.float16)
    lib.np_outliers(address, start.data_ptr(), column.data_ptr(), value.data_ptr())
    return Outliers(start, column, value)

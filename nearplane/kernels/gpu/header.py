"""The header of a layout on a GPU: its first 256 bytes.

A layout is the form of a record that kernels multiply by; it is made when a model is loaded. The
header has the numbers that the host needs before it starts a kernel.
"""

import struct
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from nearplane import codes
from nearplane.codes.header import GROUP
from nearplane.codes.header import Header as Record
from nearplane.kernels import coders
from nearplane.types import Outliers

# magic, kind, then the numbers of a Head in its order, three zeros, and its `own` numbers
FIELDS = struct.Struct("<4sI13Q13Q")
BYTES = 256
MAGIC = b"NPGL"
OWN = 13  # most numbers that only one kind of layout needs

_known: dict[int, tuple["weakref.ref[Tensor]", "Head"]] = {}


@dataclass(frozen=True)
class Head:
    """The header of a layout.

    - `kind`: which kernels read the layout.
    - `bytes`, `stored_bytes`: of the layout, and of the record that it was made from.
    - `coder`: the encoder of the record, as a number of kernels/coders.py.
    - `own`: at most 13 numbers whose meaning depends on `kind`.
    """

    kind: int
    bytes: int
    stored_bytes: int
    rows: int
    columns: int
    group_size: int
    step_form: int
    step_type: int
    code_tag: int
    coder: int
    has_outliers: int
    own: tuple[int, ...]

    def to_bytes(self) -> UInt8[Tensor, " 256"]:
        numbers = [self.bytes, self.stored_bytes, self.rows, self.columns, self.group_size]
        numbers += [self.step_form, self.step_type, self.code_tag, self.coder, self.has_outliers]
        own = [*self.own, *[0] * (OWN - len(self.own))]
        packed = FIELDS.pack(MAGIC, self.kind, *numbers, 0, 0, 0, *own)
        return torch.frombuffer(bytearray(packed.ljust(BYTES, b"\0")), dtype=torch.uint8)


def head_of(record: Record, coder: int, kind: int, size: int, own: tuple[int, ...]) -> Head:
    """Return the header of a layout of `size` bytes, made from a record with header `record`."""
    return Head(
        kind,
        size,
        record.record_bytes,
        record.rows,
        record.columns,
        record.group_size,
        record.step_form,
        record.step_type,
        record.code_tag,
        coder,
        int(record.outlier_bytes > 0),
        own,
    )


def read_head(layout: UInt8[Tensor, " layout"]) -> Head:
    """Return the header of a layout; ValueError if these bytes are not a layout.

    The header of a tensor is read only once, since reading waits for the GPU.
    """
    known = _known.get(layout.data_ptr())
    # as long as the tensor exists, no other tensor can be at its address
    if known is not None and known[0]() is not None and known[1].bytes == len(layout):
        return known[1]
    if layout.dtype != torch.uint8 or layout.dim() != 1 or not layout.is_contiguous():
        raise ValueError(f"a layout is one row of bytes, not {layout.dtype} {list(layout.shape)}")
    first = bytes(layout[:BYTES].cpu().numpy())
    if len(first) < BYTES or first[:4] != MAGIC:
        raise ValueError(f"these {len(layout)} bytes are no layout for a GPU")
    _, kind, *numbers = FIELDS.unpack(first[: FIELDS.size])
    fields: tuple[Any, ...] = (kind, *numbers[:10], tuple(numbers[13:]))
    head = Head(*fields)
    if head.bytes != len(layout):
        raise ValueError(f"a layout of {head.bytes} bytes has {len(layout)}")
    return remember(layout, head)


def remember(layout: UInt8[Tensor, " layout"], head: Head) -> Head:
    """Keep the header of a layout as long as the tensor exists; return the header."""
    address = layout.data_ptr()

    def forget(gone: "weakref.ref[Tensor]") -> None:
        if _known.get(address, (None,))[0] is gone:
            del _known[address]

    _known[address] = weakref.ref(layout, forget), head
    return head


def record_of(
    head: Head,
    code: Tensor,
    step: Tensor,
    outliers: Outliers | None,
    row_step: Tensor | None = None,
) -> UInt8[Tensor, " bytes"]:
    """Encode the contents of a layout again; return the record that it was made from.

    ValueError if the result has another size, because another encoder wrote the record.
    """
    coder, _ = coders.coder(head.code_tag, head.coder)
    group_size = head.group_size if head.step_form == GROUP else head.columns
    sparse = outliers if head.has_outliers else None
    rows = None if row_step is None else row_step.cpu()
    record = codes.pack(code.cpu(), step.cpu(), group_size, sparse, coder, rows)[0]
    if len(record) != head.stored_bytes:
        raise ValueError(
            f"a record of {head.stored_bytes} bytes, by another encoder, cannot be made again: "
            "copy the checkpoint's files instead of saving the loaded model"
        )
    return record

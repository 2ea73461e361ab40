"""The first bytes of a layout on a GPU: numbers that the host needs before it starts a kernel."""

import struct
import weakref
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from nearplane import codes
from nearplane.codes.header import GROUP
from nearplane.codes.header import Header as Record
from nearplane.kernels import coders
from nearplane.types import Outliers

# magic, kind, bytes of the layout, of the record, rows, columns, group_size, step_form, step_type,
# code_tag, coder, then numbers of the kind
FIELDS = struct.Struct("<4sI13Q13Q")
BYTES = 256
MAGIC = b"NPGL"
OWN = 13

_known: dict[int, tuple["weakref.ref[Tensor]", "Head"]] = {}


@dataclass(frozen=True)
class Head:
    """What a layout holds.

    - `kind`: which kernels read it.
    - `stored_bytes`, `coder`: what makes its record again (`record_of`).
    - `own`: at most 13 numbers of the kind.
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
    """Return the head of a layout of `size` bytes made of a record that has the header `record`."""
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
    """Return the head of a layout; a tensor is read once, since that waits for its device.

    ValueError if these bytes are no layout.
    """
    known = _known.get(layout.data_ptr())
    # while the tensor that was read lives, its memory is no other's
    if known is not None and known[0]() is not None and known[1].bytes == len(layout):
        return known[1]
    if layout.dtype != torch.uint8 or layout.dim() != 1 or not layout.is_contiguous():
        raise ValueError(f"a layout is one row of bytes, not {layout.dtype} {list(layout.shape)}")
    first = bytes(layout[:BYTES].cpu().numpy())
    if len(first) < BYTES or first[:4] != MAGIC:
        raise ValueError(f"these {len(layout)} bytes are no layout for a GPU")
    _, kind, *numbers = FIELDS.unpack(first[: FIELDS.size])
    head = Head(kind, *numbers[:10], tuple(numbers[13:]))
    if head.bytes != len(layout):
        raise ValueError(f"a layout of {head.bytes} bytes has {len(layout)}")
    return remember(layout, head)


def remember(layout: UInt8[Tensor, " layout"], head: Head) -> Head:
    """Keep the head of a layout that lives, and return it."""
    address = layout.data_ptr()

    def forget(gone: "weakref.ref[Tensor]") -> None:
        if _known.get(address, (None,))[0] is gone:
            del _known[address]

    _known[address] = weakref.ref(layout, forget), head
    return head


def record_of(
    head: Head, code: Tensor, step: Tensor, outliers: Outliers | None
) -> UInt8[Tensor, " bytes"]:
    """Return the record that a layout was made of, from what it holds.

    ValueError if another encoder wrote it.
    """
    coder, _ = coders.coder(head.code_tag, head.coder)
    group_size = head.group_size if head.step_form == GROUP else head.columns
    sparse = outliers if head.has_outliers else None
    record = codes.pack(code.cpu(), step.cpu(), group_size, sparse, coder)[0]
    if len(record) != head.stored_bytes:
        raise ValueError(
            f"a record of {head.stored_bytes} bytes, by another encoder, cannot be made again: "
            "copy the checkpoint's files instead of saving the loaded model"
        )
    return record

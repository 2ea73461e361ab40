"""The bytes that a loaded layer keeps in memory and multiplies by.

Without kernels these are the stored record itself, decoded at every use. Kernels register faster
versions of the functions below, and with them other forms: layouts made from the record when the
model is loaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nearplane import types
from nearplane.codes import record as records
from nearplane.op import Op

RECORD = "record"  # the name of the form in which the bytes are the record itself
AUTO, COMPACT, FAST = "auto", "compact", "fast"
WANTED = (AUTO, COMPACT, FAST)  # what a user may ask `lay_out` for, see `wanting`

_wanted: ContextVar[str] = ContextVar("wanted", default=AUTO)


@contextmanager
def wanting(form: str) -> Iterator[None]:
    """Inside a `with` block, lay records out as asked.

    - `form`: "compact", about as small as the record; "fast", in codes of fixed width, where a
      product takes activations as integers and is off by about 1e-4 of its result; "auto" is the
      one that this processor multiplies by faster, where memory allows it.

    ValueError for another word.
    """
    if form not in WANTED:
        raise ValueError(f"resident must be one of {', '.join(WANTED)}, not {form!r}")
    token = _wanted.set(form)
    try:
        yield
    finally:
        _wanted.reset(token)


def wanted() -> str:
    """Return what `lay_out` is asked for now."""
    return _wanted.get()


@Op
def lay_out(
    record: UInt8[Tensor, " bytes"], rows: int, columns: int
) -> tuple[str, UInt8[Tensor, " resident"]]:
    """Convert a record to the form to multiply by, losslessly; return the form's name and bytes."""
    return RECORD, record


@Op
def stored(
    resident: UInt8[Tensor, " resident"], form: str, rows: int, columns: int
) -> UInt8[Tensor, " bytes"]:
    """Return the record that `lay_out` was given: the inverse of `lay_out`."""
    return _only_record(resident, form)


@Op
def value(
    resident: UInt8[Tensor, " resident"], form: str, rows: int, columns: int
) -> Float[Tensor, "rows columns"]:
    """Return row_step · step · code + outliers in float32, on the device of `resident`."""
    if resident.is_meta:
        return torch.empty(rows, columns, device="meta")
    held = records.unpack(_only_record(resident, form), rows, columns)
    dense = types.value(held.code, held.step, held.group_size, held.outliers, held.row_step)
    return dense.to(resident.device)


@Op
def value_rows(
    index: Int[Tensor, "*batch"],
    resident: UInt8[Tensor, " resident"],
    form: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> Float[Tensor, "*batch columns"]:
    """Return the rows of the value that `index` names, in the type `dtype`.

    - `shape`: rows and columns of the whole matrix.
    """
    return value(resident, form, *shape)[index].to(dtype)


@Op
def product(
    x: Float[Tensor, "*batch columns"],
    resident: UInt8[Tensor, " resident"],
    form: str,
    rows: int,
    bias: Float[Tensor, " rows"] | None = None,
) -> Float[Tensor, "*batch rows"]:
    """Return x · valueᵀ + bias in the type of x."""
    weight = value(resident, form, rows, x.shape[-1])
    return F.linear(x, weight.to(x.dtype), bias)


def _only_record(resident: Tensor, form: str) -> Tensor:
    if form != RECORD:
        raise ValueError(f"the form {form!r} needs kernels that are not here: load the model again")
    return resident

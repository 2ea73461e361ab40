"""The bytes that a loaded layer keeps in memory and multiplies by.

Without kernels these are the stored record itself, decoded at every use. Kernels register faster
versions of the functions below, and with them other forms: layouts made from the record when the
model is loaded.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nearplane import types
from nearplane.codes import record as records
from nearplane.op import Op

RECORD = "record"  # the name of the form in which the bytes are the record itself


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

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

from nearplane.codes import record as records
from nearplane.op import Op

RECORD = "record"  # the name of the form in which the bytes are the record itself
AUTO, COMPACT, FAST = "auto", "compact", "fast"
EXACT, INT8 = "exact", "int8"
WANTED = (AUTO, COMPACT, FAST)  # what a user may ask `lay_out` for, see `wanting`
ACTIVATIONS = (AUTO, EXACT, INT8)

_wanted: ContextVar[tuple[str, str]] = ContextVar("wanted", default=(AUTO, AUTO))


@contextmanager
def wanting(form: str, activations: str = AUTO) -> Iterator[None]:
    """Inside a `with` block, lay records out as asked.

    - `form`: "compact", about as small as the record; "fast", in codes of fixed width, where a
      product takes activations as integers; "auto" is the one that this processor multiplies by
      faster, where memory allows it.
    - `activations`: what products by the fast form take: "auto" is integers of 15 bits, which moves
      a result by about 1e-4; "int8" is integers of 8 bits, which moves it by about 1e-2. "exact":
      only the compact form is used, which takes activations as they are.

    ValueError for other words, and for two that contradict each other.
    """
    problem = problem_of(form, activations)
    if problem:
        raise ValueError(problem)
    token = _wanted.set((form, activations))
    try:
        yield
    finally:
        _wanted.reset(token)


def problem_of(form: str, activations: str) -> str:
    """Return what is wrong with two words for `wanting`, or nothing."""
    for name, word, known in (
        ("resident", form, WANTED),
        ("activations", activations, ACTIVATIONS),
    ):
        if word not in known:
            return f"{name} must be one of {', '.join(known)}, not {word!r}"
    if (form, activations) == (FAST, EXACT):
        return "exact activations need the compact form: leave out one of the two"
    if (form, activations) == (COMPACT, INT8):
        return "activations as integers of 8 bits need the fast form: leave out one of the two"
    return ""


def wanted() -> str:
    """Return the form that `lay_out` is asked for now."""
    form, activations = _wanted.get()
    return COMPACT if activations == EXACT else form


def input_bits() -> int:
    """Return the bits of activations as integers that `lay_out` is asked for now."""
    return 8 if _wanted.get()[1] == INT8 else 15


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
    """Return the weight that the record stands for in float32, on the device of `resident`."""
    if resident.is_meta:
        return torch.empty(rows, columns, device="meta")
    held = records.unpack(_only_record(resident, form), rows, columns)
    return held.value().to(resident.device)


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

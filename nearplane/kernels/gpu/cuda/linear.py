"""The product x · weightᵀ + bias with a CUDA layout, and layouts -> records."""

import weakref

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from nearplane.codes.header import COLUMN, GROUP
from nearplane.kernels.gpu.cuda import launches
from nearplane.kernels.gpu.cuda.driver import Gpu
from nearplane.kernels.gpu.cuda.sections import (
    ROW_GROUP,
    ROWS,
    groups,
    row_blocks,
    sections,
    shape_of,
)
from nearplane.kernels.gpu.header import Head, read_head, record_of
from nearplane.kernels.operators import check_shape, operator
from nearplane.types import Outliers

# what runs launches on each type of device; tests add a CPU that emulates a GPU
MACHINES: dict[str, launches.Machine] = {"cuda": Gpu()}
MOST_GROUPS = 64  # row groups that are decoded at a time when rows are looked up
STEP_TYPES = {1: torch.float16, 2: torch.bfloat16}

# address of a sorted layout -> the tensor, and where each row of the weight is in it
_known_places: dict[int, tuple["weakref.ref[Tensor]", Tensor]] = {}


def _linear(x: Tensor, layout: Tensor, rows: int, bias: Tensor | None) -> Tensor:
    """Return x · weightᵀ + bias, accumulated in float32, in the type of x.

    For more rows of activations than the kernels take, the weight is decoded and torch multiplies.
    ValueError if the weight in the layout has another shape.
    """
    head, columns = read_head(layout), x.shape[-1]
    check_shape((head.rows, head.columns), rows, columns)
    if bias is not None and (bias.dtype != x.dtype or not bias.is_contiguous()):
        bias = bias.to(x.dtype).contiguous()
    batch = x.numel() // columns
    if batch > launches.most_rows(head, x.dtype):
        return _by_decoding(x, layout, head, bias)
    y = x.new_empty((*x.shape[:-1], rows))
    if batch:
        flat = x.contiguous().view(batch, columns)
        launch = launches.product(layout, head, flat, bias, y)
        MACHINES[x.device.type].run(launch, x.device)
    return y


def _by_decoding(x: Tensor, layout: Tensor, head: Head, bias: Tensor | None) -> Tensor:
    """Return the product by decoding the weight first, in the order of the layout if sorted."""
    if not shape_of(head).ordered:
        return F.linear(x, weight(layout, x.dtype), bias)
    dense = torch.empty(head.rows, head.columns, dtype=x.dtype, device=x.device)
    MACHINES[x.device.type].run(launches.weight(layout, head, dense, as_laid=True), x.device)
    y = x.new_empty((*x.shape[:-1], head.rows))
    rows, columns = (_order(layout, head, name) for name in ("row", "source"))
    y[..., rows] = F.linear(x[..., columns], dense, None if bias is None else bias[rows])
    return y


def weight(layout: UInt8[Tensor, " layout"], dtype: torch.dtype) -> Shaped[Tensor, "rows columns"]:
    """Return step · code + outliers in `dtype`, computed in float32; the codes if it is int32."""
    head = read_head(layout)
    out = torch.empty(head.rows, head.columns, dtype=dtype, device=layout.device)
    MACHINES[layout.device.type].run(launches.weight(layout, head, out), layout.device)
    return out


def weight_rows(
    layout: UInt8[Tensor, " layout"], index: Int64[Tensor, " some"], dtype: torch.dtype
) -> Shaped[Tensor, "some columns"]:
    """Return some rows of the weight, in any order, in `dtype`.

    Rows that share code tables, a row group, are decoded together: MOST_GROUPS of them at a time.
    Nothing waits for the GPU.
    """
    head = read_head(layout)
    # on a GPU this stops the program later, as torch's own embedding does
    there = ((index >= 0) & (index < head.rows)).all()
    torch._assert_async(there)  # pyright: ignore[reportPrivateImportUsage]
    place = index if not shape_of(head).ordered else _places(layout, head)[index]
    parts = [_rows(layout, head, some, dtype) for some in place.split(MOST_GROUPS)]
    return torch.cat(parts) if len(parts) != 1 else parts[0]


def _rows(layout: Tensor, head: Head, place: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the rows at some places of the layout."""
    size = ROWS * ROW_GROUP
    group, inside = (place // size).to(torch.int32).contiguous(), place % size
    out = torch.empty(len(place), size, head.columns, dtype=dtype, device=layout.device)
    if out.numel():
        launch = launches.weight(layout, head, out, wanted=group)
        MACHINES[layout.device.type].run(launch, layout.device)
    return out[torch.arange(len(place), device=layout.device), inside]


def _places(layout: Tensor, head: Head) -> Int64[Tensor, " rows"]:
    """Return where every row of the weight is among those of a sorted layout; worked out once."""
    address = layout.data_ptr()
    known = _known_places.get(address)
    if known is None or known[0]() is not layout:
        found = torch.argsort(_order(layout, head, "row"))
        known = _known_places[address] = weakref.ref(layout), found
    return known[1]


def unpack(layout: UInt8[Tensor, " layout"]) -> UInt8[Tensor, " bytes"]:
    """Return the record that a layout was made from; ValueError as in `header.record_of`."""
    head = read_head(layout)
    code = weight(layout, torch.int32)
    parts = code, _steps(layout, head), _outliers(layout, head), _row_step(layout, head)
    return record_of(head, *parts).to(layout.device)


def _part(layout: Tensor, head: Head, name: str, dtype: torch.dtype, count: int) -> Tensor:
    """Return the first `count` numbers of a section."""
    places = sections(head.rows, head.columns, head.step_form, head.step_type, shape_of(head))
    size = torch.empty(0, dtype=dtype).element_size() * count
    # a copy, since the section may not be aligned as `dtype` needs it
    return layout[places[name] : places[name] + size].clone().view(dtype)


def _order(layout: Tensor, head: Head, name: str) -> Int64[Tensor, " places"]:
    """Return the row or column of the weight that each row or column of the layout is."""
    count = head.rows if name == "row" else head.columns
    # int16 holds an unsigned number here
    return _part(layout, head, name, torch.int16, count).long() & 0xFFFF


def _steps(layout: Tensor, head: Head) -> Float[Tensor, "step_rows step_columns"]:
    shape = shape_of(head)
    if head.step_form == COLUMN:
        return _part(layout, head, "step", torch.float32, head.columns)[None]
    if shape.window:
        return torch.tensor([[shape.scale]])
    count, blocks = groups(head.columns, head.step_form, shape), row_blocks(head.rows)
    dtype = STEP_TYPES.get(head.step_type, torch.float32)
    whole = _part(layout, head, "step", dtype, blocks * count * ROWS).float()
    rows = whole.view(blocks, count, ROWS).transpose(1, 2).reshape(-1, count)
    own = -(-head.columns // head.group_size) if head.step_form == GROUP else 1
    return rows[: head.rows if head.step_form == GROUP else 1, :own]


def _row_step(layout: Tensor, head: Head) -> Float[Tensor, "rows 1"] | None:
    if not shape_of(head).row_steps:
        return None
    return _part(layout, head, "row_step", torch.bfloat16, head.rows).float()[:, None]


def _outliers(layout: Tensor, head: Head) -> Outliers | None:
    shape, blocks = shape_of(head), row_blocks(head.rows)
    if not head.has_outliers:
        return None
    if not shape.sparse:
        empty = torch.zeros(head.rows + 1, dtype=torch.int32)
        return Outliers(empty, torch.empty(0, dtype=torch.int32), torch.empty(0).half())
    count = _part(layout, head, "count", torch.uint8, blocks * shape.tiles * ROWS).long().cpu()
    column = _part(layout, head, "column", torch.uint8, shape.sparse).long().cpu()
    value = _part(layout, head, "value", torch.float16, shape.sparse).cpu()
    place = torch.arange(len(count)).repeat_interleave(count)
    tile, row = place // ROWS, place % ROWS + place // (shape.tiles * ROWS) * ROWS
    column += tile % shape.tiles * shape.tile_columns
    if head.step_form == GROUP and head.group_size < head.columns:
        inside = column % shape.wide_group
        column = column // shape.wide_group * head.group_size + inside
    order = torch.argsort(row, stable=True)
    start = torch.zeros(head.rows + 1, dtype=torch.int32)
    start[1:] = torch.bincount(row, minlength=head.rows).cumsum(0)
    return Outliers(start, column[order].to(torch.int32), value[order])


# registered for every device, since MACHINES decides what runs there
linear = operator("gpu", "CompositeExplicitAutograd", _linear, weight)

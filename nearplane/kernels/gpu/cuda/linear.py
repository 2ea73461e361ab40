"""The product x · weightᵀ + bias with a CUDA layout, and layouts -> records."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from nearplane.codes.header import COLUMN, GROUP
from nearplane.kernels.gpu.cuda import launches
from nearplane.kernels.gpu.cuda.driver import Gpu
from nearplane.kernels.gpu.cuda.sections import ROWS, groups, row_blocks, sections, shape_of
from nearplane.kernels.gpu.header import Head, read_head, record_of
from nearplane.kernels.operators import check_shape, operator
from nearplane.types import Outliers

# what runs launches on each type of device; tests add a CPU that emulates a GPU
MACHINES: dict[str, launches.Machine] = {"cuda": Gpu()}
STEP_TYPES = {1: torch.float16, 2: torch.bfloat16}


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

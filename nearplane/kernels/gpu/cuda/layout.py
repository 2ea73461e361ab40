"""Records -> layouts: the bytes that the CUDA kernels multiply by (docs/GPU.md).

A layout is made from a record when a model is loaded, and never stored in a checkpoint.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32, Int32, UInt8
from torch import Tensor

from nearplane import codes
from nearplane.codes.header import COLUMN, GROUP, Header
from nearplane.codes.record import Unpacked
from nearplane.kernels import coders
from nearplane.kernels.gpu import header
from nearplane.kernels.gpu.cuda import contexts, lanes, planes, sparse
from nearplane.kernels.gpu.cuda.contexts import Plan
from nearplane.kernels.gpu.cuda.sections import (
    KIND,
    ROW_GROUP,
    ROWS,
    TYPES,
    Shape,
    row_blocks,
    sections,
)
from nearplane.kernels.gpu.cuda.sparse import Sparse
from nearplane.kernels.gpu.cuda.tables import Table
from nearplane.types import Outliers

# a layout of more than MOST_GROWTH · record + FREE_BYTES bytes is not used: the record is then
# decoded at every use
MOST_GROWTH, FREE_BYTES = 1.25, 2**16
HALF_TYPES = {1: torch.float16, 2: torch.bfloat16}


@dataclass(frozen=True)
class Parts:
    """The sections of a layout by name, before they are written one after the other."""

    shape: Shape
    section: dict[str, Tensor]


def pack(record: UInt8[Tensor, " bytes"], device: torch.device) -> UInt8[Tensor, " layout"] | None:
    """Return the layout of a record on `device`.

    None if these kernels cannot serve the record, or would not pay.
    """
    held, head = codes.unpack(record), codes.inspect(record)
    option = coders.option(record.cpu(), head)
    if option is None or not coders.is_lossless(held):
        return None
    dense = head.code_tag == codes.Dense.tag
    form = head.form_of_steps
    parts = (_planes if dense else _lanes)(held, replace(head, step_form=form), device)
    if parts is None:
        return None
    if held.row_step is not None:
        parts = with_row_steps(parts, held.row_step)
    places = sections(head.rows, head.columns, form, head.step_type, parts.shape)
    if places["end"] > MOST_GROWTH * len(record) + FREE_BYTES:
        return None
    about = header.head_of(head, option, KIND, places["end"], parts.shape.own())
    about = replace(about, step_form=form)
    layout = torch.zeros(places["end"], dtype=torch.uint8, device=device)
    layout[: header.BYTES] = about.to_bytes().to(device)
    for name, part in parts.section.items():
        whole = part.contiguous().flatten().view(torch.uint8)
        layout[places[name] : places[name] + len(whole)] = whole.to(device)
    header.remember(layout, about)
    return layout


def with_row_steps(parts: Parts, row_step: Float32[Tensor, "rows 1"]) -> Parts:
    """Return the sections with the rows' factors, which bfloat16 holds exactly."""
    section = parts.section | {"row_step": row_step.flatten().to(torch.bfloat16)}
    return Parts(replace(parts.shape, row_steps=1), section)


def _lanes(held: Unpacked, head: Header, device: torch.device) -> Parts | None:
    """Return the sections for entropy-coded integers; None if these kernels cannot serve them."""
    if head.step_form == GROUP or held.outliers is not None:
        return None
    code, (tiles, tile_columns) = held.code.to(device), lanes.columns_of_tiles(head.columns)
    plan = contexts.plan(code, tiles, tile_columns)
    if plan is None:
        return None
    section: dict[str, Tensor] = {}
    if plan.rows is not None and plan.columns is not None:
        code = code[plan.rows][:, plan.columns]
        section |= {"row": _two_bytes(plan.rows), "source": _two_bytes(plan.columns)}
    whole = lanes.padded(code, tiles * tile_columns)
    table = _tables_of_tiles(plan, len(whole) // ROWS, tiles).to(device)
    escapes = _escapes(whole, plan.tables, table, tile_columns)
    if escapes is None:
        return None
    streams = lanes.encode(whole, tile_columns, plan.tables, table.flatten())
    section |= _sparse_sections(escapes, torch.int16) | {
        "tile": _directory(streams),
        "table": _tables(plan.tables),
        "field": torch.from_numpy(plan.table).to(torch.int32),
        "data": streams.data,
    }
    if head.step_form == COLUMN:
        section["step"] = held.step.to(torch.float32)
    scale = 1.0 if head.step_form == COLUMN else float(held.step)
    whole_tile = -(-4 * int(streams.first.diff().max()) // 16) * 16
    shape = Shape(
        window=plan.window,
        bits=0,
        tables=len(plan.tables),
        fields=plan.table.shape[1],
        ordered=int(plan.rows is not None),
        tiles=tiles,
        tile_columns=tile_columns,
        wide_group=head.columns,
        # a tile may begin and end between multiples of 16 bytes; streams are read 2 words ahead
        tile_bytes=whole_tile + 32,
        data_bytes=len(streams.data),
        sparse=len(escapes.value),
        scale=scale,
    )
    return Parts(shape, section)


def _tables_of_tiles(plan: Plan, blocks: int, tiles: int) -> Tensor:
    """Return which code table each tile uses, (row blocks, tiles)."""
    fields = plan.table.shape[1]
    row_group = torch.arange(blocks) // ROW_GROUP
    field = torch.arange(tiles) // -(-tiles // fields)
    return torch.from_numpy(plan.table)[row_group[:, None], field]


def _escapes(
    code: Int32[Tensor, "rows columns"], tables: list[Table], table: Tensor, tile_columns: int
) -> Sparse | None:
    """Return by how much integers exceed the alphabet of their code table.

    None if 16 bits cannot hold it, or if a row of a tile has too many of them.
    """
    blocks, tiles = table.shape
    ends = torch.tensor([[each.low, each.high] for each in tables], dtype=torch.int32)
    low, high = ends.to(code.device)[table].unbind(2)
    cut = code.view(blocks, ROWS, tiles, tile_columns)
    inside = cut.clamp(low[:, None, :, None], high[:, None, :, None])
    escapes = code - inside.view_as(code)
    row, column = escapes.nonzero(as_tuple=True)
    value = escapes[row, column]
    if len(value) and int(value.abs().max()) >= 1 << 15:
        return None
    return sparse.by_tile(row, column, value.to(torch.int16), tiles, (blocks, tile_columns))


def _tables(tables: list[Table]) -> Tensor:
    """Return the entries of all code tables, then the least and largest integer of each."""
    entries = [torch.from_numpy(table.entries().view("int32")) for table in tables]
    ends = torch.tensor([[table.low, table.high] for table in tables], dtype=torch.int32)
    return torch.cat([*entries, ends.flatten()])


def _directory(streams: lanes.Streams) -> Tensor:
    """Return (first, least) of every tile, and where the last tile ends (lanes.Streams)."""
    least = torch.nn.functional.pad(streams.least, (0, 1))
    return torch.stack([streams.first.to(torch.int32), least], dim=1)


def _two_bytes(order: Tensor) -> Tensor:
    """Return numbers below 2^16 as two bytes each."""
    return order.to(torch.int32).to(torch.int16)


def _planes(held: Unpacked, head: Header, device: torch.device) -> Parts | None:
    """Return the sections for codes of fixed width; None if these kernels cannot serve them."""
    if head.step_form == COLUMN and held.outliers is not None:
        return None
    widest = max(int(held.code.max()), -int(held.code.min()) - 1, 0)
    bits = widest.bit_length() + 1
    if bits > 8:
        return None
    group, wide = head.group_size, -(-head.group_size // planes.BLOCK) * planes.BLOCK
    grouped = head.step_form == GROUP and group < head.columns
    wide_columns = -(-head.columns // group) * wide if grouped else head.columns
    tiles, tile_columns = planes.columns_of_tiles(wide_columns)
    if not grouped:
        group = wide = tiles * tile_columns
    code = _padded_groups(held.code.to(device), group, wide, tiles * tile_columns)
    section: dict[str, Tensor] = {"data": planes.encode(code, bits, tile_columns)}
    count = 0
    if held.outliers is not None:
        outliers = _outliers(held.outliers, group, wide, (tiles, tile_columns), device)
        if outliers is None:
            return None
        section |= _sparse_sections(outliers, torch.uint8)
        count = len(outliers.value)
    section["step"] = _steps(held, head, -(-tiles * tile_columns // wide))
    data_bytes = len(section["data"])
    numbers = 0, bits, 0, 0, 0, tiles, tile_columns, wide, 0, data_bytes
    return Parts(Shape(*numbers, count, 1.0), section)


def _padded_groups(
    code: Int32[Tensor, "rows columns"], group: int, wide: int, columns: int
) -> Tensor:
    """Return the integers, padded with zeros: groups to `wide` columns, rows to `columns`."""
    if group != wide:
        missing = -code.shape[1] % group
        code = torch.nn.functional.pad(code, (0, missing)).unflatten(1, (-1, group))
        code = torch.nn.functional.pad(code, (0, wide - group)).flatten(1)
    return lanes.padded(code, columns)


def _outliers(
    some: Outliers, group: int, wide: int, cut: tuple[int, int], device: torch.device
) -> Sparse | None:
    """Return outliers by tile, at the columns that they have once groups are padded."""
    tiles, tile_columns = cut
    rows = len(some.start) - 1
    row = torch.arange(rows).repeat_interleave(some.start.diff()).to(device)
    column = some.column.to(device).long()
    column = column // group * wide + column % group
    shape = row_blocks(rows), tile_columns
    return sparse.by_tile(row, column, some.value.to(device), tiles, shape)


def _steps(held: Unpacked, head: Header, groups: int) -> Tensor:
    """Return float32 steps of columns; or steps as (row block, group, row) in the record's type."""
    if head.step_form == COLUMN:
        return held.step.to(torch.float32)
    whole = torch.zeros(row_blocks(head.rows) * ROWS, groups)
    own = held.step.expand(head.rows, -1)
    whole[: head.rows, : own.shape[1]] = own
    ordered = whole.view(-1, ROWS, groups).transpose(1, 2)
    return ordered.to(HALF_TYPES.get(TYPES.get(head.step_type, 0), torch.float32))


def _sparse_sections(held: Sparse, column_type: torch.dtype) -> dict[str, Tensor]:
    """Return the sections for sparse entries; none if there are no entries."""
    if not len(held.value):
        return {}
    column = held.column.to(column_type)
    return {"first": held.first, "count": held.count, "column": column, "value": held.value}

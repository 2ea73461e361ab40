"""Dense records <-> layouts: the bytes that the Triton kernels multiply by (geometry.py).

A layout is made from a record when a model is loaded, and never stored in a checkpoint.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from nearplane import codes
from nearplane.codes.dense import HEADER as DENSE_HEADER
from nearplane.codes.header import COLUMN, COLUMN_AND_ROW, GROUP
from nearplane.codes.record import Unpacked
from nearplane.kernels import coders
from nearplane.kernels.gpu import header
from nearplane.kernels.gpu.portable import geometry as shapes
from nearplane.kernels.gpu.portable.geometry import LANES, SPAN, VECTOR, WORD, Geometry, Sections
from nearplane.types import Outliers

KIND = 2  # of these layouts, in the header
STEP_TYPES = (torch.float32, torch.float16, torch.bfloat16)
# a layout of more than MOST_GROWTH · record + FREE_BYTES bytes is not used: the record is then
# decoded at every use
MOST_GROWTH, FREE_BYTES = 1.25, 2**16
LARGEST = 256  # bfloat16 holds every integer up to this exactly
BIAS = 2**31  # added to a signed number, since a header holds unsigned ones


def pack(record: UInt8[Tensor, " bytes"], device: torch.device) -> UInt8[Tensor, " layout"] | None:
    """Return the layout of a record; None if these kernels cannot serve it or would not pay."""
    stored = codes.inspect(record)
    option = coders.option(record, stored)
    unserved = stored.code_tag != codes.Dense.tag or stored.step_form == COLUMN_AND_ROW
    if unserved or option is None:
        return None
    low, bits = DENSE_HEADER.unpack_from(bytes(record[stored.codes_at :][:5]))
    if bits > shapes.WIDEST or low < -LARGEST or low + 2**bits - 1 > LARGEST:
        return None
    made = shapes.geometry(bits, stored.rows, stored.columns, stored.group_size)
    # checked before anything is unpacked, since padding alone may be too much
    most = MOST_GROWTH * len(record) + FREE_BYTES
    if 4 * made.word_count > most or made.word_count >= BIAS:
        return None
    held = codes.unpack(record)
    parts = _parts(held, stored.step_form, low, made, device)
    step_type = STEP_TYPES.index(parts["steps"].dtype)
    slots = len(parts["entries"]) if "entries" in parts else 0
    own = bits, low + BIAS, step_type, slots
    head = header.head_of(stored, option, KIND, 0, own)
    places = sections_of(head)
    if places.size > most:
        return None
    head = header.head_of(stored, option, KIND, places.size, own)
    layout = torch.zeros(places.size, dtype=torch.uint8, device=device)
    layout[: header.BYTES] = head.to_bytes().to(device)
    for name, part in parts.items():
        flat = part.contiguous().view(-1).view(torch.uint8)
        layout[getattr(places, name) :][: len(flat)] = flat
    header.remember(layout, head)
    return layout


def unpack(layout: UInt8[Tensor, " layout"]) -> UInt8[Tensor, " bytes"]:
    """Return the record that a layout was made from; ValueError as in `header.record_of`."""
    head = header.read_head(layout)
    made, places = geometry_of(head), sections_of(head)
    words = part_of(layout, places.words, made.word_count, torch.int32)
    code = integers(words, made)[: head.rows, : head.columns] + low_of(head)
    step = _steps(layout, head, made, places)
    outliers = _outliers(layout, head, made, places) if head.has_outliers else None
    return header.record_of(head, code, step, outliers).to(layout.device)


def geometry_of(head: header.Head) -> Geometry:
    """Return the arrangement of the codes of a layout."""
    return shapes.geometry(head.own[0], head.rows, head.columns, head.group_size)


def sections_of(head: header.Head) -> Sections:
    """Return where the sections of a layout begin."""
    made = geometry_of(head)
    count = step_count(head.step_form, made)
    size = STEP_TYPES[head.own[2]].itemsize
    return shapes.sections(made, size * count, head.own[3], bool(head.has_outliers))


def low_of(head: header.Head) -> int:
    """Return the integer that is stored as 0: the least one that the codes can hold."""
    return head.own[1] - BIAS


def step_count(form: int, made: Geometry) -> int:
    """Return how many steps a layout stores, padding included."""
    return {COLUMN: made.columns, GROUP: made.groups * made.tiles * LANES}.get(form, 1)


def part_of(layout: Tensor, at: int, count: int, dtype: torch.dtype) -> Tensor:
    """Return `count` numbers of a layout from byte `at` on."""
    return layout[at : at + count * dtype.itemsize].view(dtype)


def words_of(code: Int32[Tensor, "rows columns"], made: Geometry) -> Int32[Tensor, " words"]:
    """Return the words of non-negative codes, in the order in which lanes load them."""
    rows, columns = made.tiles * LANES, made.groups * made.group_size
    code = F.pad(code, (0, columns - made.columns, 0, rows - made.rows))
    joined = made.joints * made.join * made.fields
    code = F.pad(code.view(rows, made.groups, made.group_size), (0, joined - made.group_size))
    code = code.view(rows, -1, made.fields, made.join)
    joints = made.chunks * VECTOR // made.join
    code = F.pad(code, (0, 0, 0, 0, 0, joints - code.shape[1]))
    code = code.view(rows, made.chunks, VECTOR // made.join, made.fields, made.join)
    # row, chunk, field, unit
    code = code.transpose(2, 3).reshape(rows, made.chunks, made.fields, VECTOR)
    words = code.new_zeros(rows, made.chunks, made.words, VECTOR)
    for field, (word, shift, above) in enumerate(_places(made)):
        words[:, :, word] |= code[:, :, field] << shift
        if shift + made.bits > WORD:
            words[:, :, above] |= code[:, :, field] >> (WORD - shift)
    words = words.view(made.blocks, made.stack, LANES, made.chunks, made.words, VECTOR)
    return words.permute(0, 3, 4, 1, 2, 5).reshape(-1)


def integers(words: Int32[Tensor, " words"], made: Geometry) -> Int32[Tensor, "rows columns"]:
    """Return the codes in words, padding included: the inverse of `words_of`."""
    rows = made.tiles * LANES
    shape = made.blocks, made.chunks, made.words, made.stack, LANES, VECTOR
    words = words.view(shape).permute(0, 3, 4, 1, 2, 5).reshape(rows, made.chunks, -1, VECTOR)
    code = words.new_empty(rows, made.chunks, made.fields, VECTOR)
    mask = 2**made.bits - 1
    for field, (word, shift, above) in enumerate(_places(made)):
        # a right shift of a negative number brings in ones, which the mask removes
        some = (words[:, :, word] >> shift) & (2 ** (WORD - shift) - 1)
        if shift + made.bits > WORD:
            some = some | (words[:, :, above] << (WORD - shift))
        code[:, :, field] = some & mask
    code = code.view(rows, made.chunks, made.fields, VECTOR // made.join, made.join)
    code = code.transpose(2, 3).reshape(rows, -1)
    joined = made.joints * made.join * made.fields
    code = code[:, : made.groups * joined].view(rows, made.groups, joined)
    return code[:, :, : made.group_size].reshape(rows, -1)


def _places(made: Geometry) -> list[tuple[int, int, int]]:
    """Return, for each code of a unit, its word, its first bit there, and the next word."""
    bits = [shapes.first_bit(made.bits) + field * made.bits for field in range(made.fields)]
    return [(bit // WORD % made.words, bit % WORD, (bit // WORD + 1) % made.words) for bit in bits]


def _parts(
    held: Unpacked, form: int, low: int, made: Geometry, device: torch.device
) -> dict[str, Tensor]:
    """Return the sections of a layout by the names of `Sections`."""
    step = _sixteen_bits(held.step.to(device))
    if form == GROUP:
        step = F.pad(step, (0, 0, 0, made.tiles * LANES - made.rows))
        step = step.view(made.blocks, made.stack, LANES, made.groups).permute(0, 3, 2, 1)
    parts = {"words": words_of(held.code.to(device) - low, made), "steps": step}
    if held.outliers is not None:
        parts |= _slots(held.outliers, made, device)
    return parts


def _sixteen_bits(step: Float[Tensor, "rows groups"]) -> Tensor:
    """Return steps in float16 or bfloat16 if one of them holds all exactly, else in float32."""
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(step.to(dtype).float().view(torch.int32), step.view(torch.int32)):
            return step.to(dtype)
    return step


def _steps(layout: Tensor, head: header.Head, made: Geometry, places: Sections) -> Tensor:
    """Return the steps of a layout as float32, in the shape that a record has."""
    dtype = STEP_TYPES[head.own[2]]
    step = part_of(layout, places.steps, step_count(head.step_form, made), dtype).float()
    if head.step_form != GROUP:
        return step[None]
    step = step.view(made.blocks, made.groups, LANES, made.stack).permute(0, 3, 2, 1)
    return step.reshape(-1, made.groups)[: made.rows].contiguous()


def _slots(outliers: Outliers, made: Geometry, device: torch.device) -> dict[str, Tensor]:
    """Return the sections for outliers (`Sections`).

    A tile has as many slots in a stripe as its row with most outliers there has outliers.
    """
    count = outliers.start.diff().to(device).long()
    row = torch.arange(made.rows, device=device).repeat_interleave(count)
    column = outliers.column.to(device).long()
    stripe, tile = column // SPAN, row // LANES
    place = (row % LANES) * 5 % LANES
    # a cell is one row in one stripe; an outlier's rank is its number among those of its cell
    cell = (stripe * made.tiles + tile) * LANES + place
    counts = torch.bincount(cell, minlength=made.stripes * made.tiles * LANES)
    order = cell.argsort(stable=True)
    ends = counts.cumsum(0)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=device) - (ends - counts)[cell[order]]
    most = counts.view(made.stripes, made.tiles, LANES).amax(2).T.reshape(-1)
    starts = F.pad(most.cumsum(0), (1, 0))
    slot = starts[tile * made.stripes + stripe] + rank
    bits = outliers.value.to(device).view(torch.int16).to(torch.int32)
    entries = torch.zeros(int(starts[-1]), LANES, dtype=torch.int32, device=device)
    entries[slot, place] = (bits << 16) | (column % SPAN).to(torch.int32)
    return {"counts": counts.to(torch.int32), "starts": starts.to(torch.int32), "entries": entries}


def _outliers(layout: Tensor, head: header.Head, made: Geometry, places: Sections) -> Outliers:
    """Return the outliers of a layout as sparse rows: the inverse of `_slots`."""
    cells, slots = made.stripes * made.tiles * LANES, head.own[3]
    counts = part_of(layout, places.counts, cells, torch.int32).long()
    starts = part_of(layout, places.starts, made.tiles * made.stripes + 1, torch.int32).long()
    entries = part_of(layout, places.entries, slots * LANES, torch.int32).view(slots, LANES)
    cell = torch.arange(cells, device=layout.device).repeat_interleave(counts)
    rank = torch.arange(len(cell), device=layout.device) - (counts.cumsum(0) - counts)[cell]
    place, tile = cell % LANES, cell // LANES % made.tiles
    stripe = cell // LANES // made.tiles
    entry = entries[starts[tile * made.stripes + stripe] + rank, place]
    row = tile * LANES + place * 13 % LANES  # 5 · 13 is 1 modulo 32
    column = (entry & (SPAN - 1)).long() + stripe * SPAN
    order = (row * made.columns + column).argsort()
    start = F.pad(torch.bincount(row, minlength=made.rows).cumsum(0), (1, 0)).to(torch.int32)
    value = (entry >> 16).to(torch.int16).view(torch.float16)
    return Outliers(start.cpu(), column[order].to(torch.int32).cpu(), value[order].cpu())

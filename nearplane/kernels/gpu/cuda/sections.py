"""Where the sections of a CUDA layout lie, computed from its header.

The rows of a weight are cut into row blocks of 16, a row block into tiles of equal width. Integers
are either entropy-coded ("lanes", one bit stream for each of a warp's 32 threads) or codes of fixed
width ("planes").
"""

import struct
from dataclasses import dataclass
from typing import Any

from nearplane.codes.header import COLUMN, GROUP
from nearplane.kernels.gpu.header import BYTES, Head

KIND = 1  # of these layouts, in the header
ROWS = 16  # rows of a tile and of a row block
ROW_GROUP = 8  # row blocks that share code tables: together a row group
BLOCK, CHUNK = 32, 64  # columns that a warp decodes at a time: of lanes, and of planes
TYPES = {1: 1, 2: 2}  # float16 and bfloat16 steps are kept as such; all others become float32
TILE_BYTES = 8  # of a tile's entry in the directory


@dataclass(frozen=True)
class Shape:
    """How a weight is cut into tiles and coded: the `own` numbers of its header.

    - `window`: longest code word of lanes in bits, 0 for planes.
    - `bits`: bits of a code in planes, 0 for lanes.
    - `tables`: number of code tables.
    - `fields`: ranges of columns that have a table of their own in each row group.
    - `ordered`: 1 if rows and columns are sorted by size.
    - `tiles`, `tile_columns`: tiles of a row block, and columns of a tile.
    - `wide_group`: columns of a group that shares a step, with padding.
    - `tile_bytes`: the most bytes that a tile takes in shared memory.
    - `data_bytes`: bytes of all codes; `sparse`: number of sparse entries.
    - `scale`: the step, if the weight has only one; else 1.
    - `row_steps`: 1 if the rows have factors beside one step a column.
    """

    window: int
    bits: int
    tables: int
    fields: int
    ordered: int
    tiles: int
    tile_columns: int
    wide_group: int
    tile_bytes: int
    data_bytes: int
    sparse: int
    scale: float
    row_steps: int = 0

    def own(self) -> tuple[int, ...]:
        whole = (self.window, self.bits, self.tables, self.fields, self.ordered)
        sizes = (self.tiles, self.tile_columns, self.wide_group, self.tile_bytes)
        counts = (self.data_bytes, self.sparse)
        scale = struct.unpack("<I", struct.pack("<f", self.scale))[0]
        return *whole, *sizes, *counts, scale, self.row_steps


def shape_of(head: Head) -> Shape:
    """Return the shape that a header describes."""
    *numbers, scale, row_steps = head.own[:13]
    fields: tuple[Any, ...] = (
        *numbers,
        struct.unpack("<f", struct.pack("<I", scale))[0],
        row_steps,
    )
    return Shape(*fields)


def group_of(head: Head) -> int:
    """Return the columns of a group without padding; with padding if a row has one group."""
    shape = shape_of(head)
    grouped = head.step_form == GROUP and shape.wide_group < shape.tiles * shape.tile_columns
    return head.group_size if grouped else shape.wide_group


def row_blocks(rows: int) -> int:
    """Return the number of row blocks."""
    return -(-rows // ROWS)


def row_groups(rows: int) -> int:
    """Return the number of row groups."""
    return -(-rows // (ROWS * ROW_GROUP))


def sections(rows: int, columns: int, form: int, kind: int, shape: Shape) -> dict[str, int]:
    """Return the byte at which each section begins; "end" is the size of the layout.

    - `form`, `kind`: step_form and step_type of the record.
    """
    blocks = row_blocks(rows)
    tiles = blocks * shape.tiles
    column_bytes = 2 if shape.window else 1
    sizes = {
        "tile": (tiles + 1) * TILE_BYTES if shape.window else 0,
        # entries of the tables, then the ends of their alphabets
        "table": 4 * shape.tables * ((1 << shape.window) + 2) if shape.window else 0,
        "field": 4 * row_groups(rows) * shape.fields,
        "row": 2 * rows * shape.ordered,
        "source": 2 * columns * shape.ordered,
        "step": step_bytes(rows, columns, form, kind, shape),
        "row_step": 2 * rows * shape.row_steps,
        "first": 4 * (tiles + 1) if shape.sparse else 0,
        "count": ROWS * tiles if shape.sparse else 0,
        "column": column_bytes * shape.sparse,
        "value": 2 * shape.sparse,
        "data": shape.data_bytes,
    }
    places, at = {}, BYTES
    for name, size in sizes.items():
        places[name] = at
        at += -(-size // 16) * 16
    return places | {"end": at}


def step_bytes(rows: int, columns: int, form: int, kind: int, shape: Shape) -> int:
    """Return the bytes of the section of steps."""
    if form == COLUMN:
        return 4 * columns
    if shape.window:
        return 0
    return (2 if kind in TYPES else 4) * ROWS * row_blocks(rows) * groups(columns, form, shape)


def groups(columns: int, form: int, shape: Shape) -> int:
    """Return how many steps a row of planes has."""
    return -(-shape.tiles * shape.tile_columns // shape.wide_group) if form == GROUP else 1

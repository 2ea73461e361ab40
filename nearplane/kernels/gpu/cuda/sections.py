"""Where the parts of a layout lie: what the head says is enough to know."""

import struct
from dataclasses import dataclass

from nearplane.codes.header import COLUMN, GROUP
from nearplane.kernels.gpu.header import BYTES, Head

KIND = 1
ROWS = 16  # rows of a tile
SHELF = 8  # row blocks that share tables
BLOCK, CHUNK = 32, 64  # columns that lanes take at a time: entropy-coded, and in planes
TYPES = {1: 1, 2: 2}  # steps in float16 and bfloat16 stay so; all others are float32
TILE_BYTES = 8  # of a tile's entry in the directory


@dataclass(frozen=True)
class Shape:
    """How a weight is cut into tiles, beyond what its record says.

    - `window`: longest code word, 0 for planes; `bits`: of planes, else 0.
    - `tables`, `fields`: codes of all lanes, and of those of a shelf; 1 if `ordered`: rows and
      columns are sorted.
    - `wide_group`: columns of a group with padding; `tile_bytes`: of the largest tile.
    - `scale`: the weight's one step, or 1.
    - `data_bytes`: codes of all tiles; `sparse`: entries beside them.
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

    def own(self) -> tuple[int, ...]:
        whole = (self.window, self.bits, self.tables, self.fields, self.ordered)
        sizes = (self.tiles, self.tile_columns, self.wide_group, self.tile_bytes)
        counts = (self.data_bytes, self.sparse)
        return *whole, *sizes, *counts, struct.unpack("<I", struct.pack("<f", self.scale))[0]


def shape_of(head: Head) -> Shape:
    """Return what a head says of the tiles."""
    *numbers, scale = head.own[:12]
    return Shape(*numbers, struct.unpack("<f", struct.pack("<I", scale))[0])


def group_of(head: Head) -> int:
    """Return the columns of a group, where the layout has more of them; else as many as it has."""
    shape = shape_of(head)
    grouped = head.step_form == GROUP and shape.wide_group < shape.tiles * shape.tile_columns
    return head.group_size if grouped else shape.wide_group


def row_blocks(rows: int) -> int:
    return -(-rows // ROWS)


def shelves(rows: int) -> int:
    return -(-rows // (ROWS * SHELF))


def sections(rows: int, columns: int, form: int, kind: int, shape: Shape) -> dict[str, int]:
    """Return where each part begins, and under "end" how many bytes the layout has.

    - `form`, `kind`: a record's step form and type.
    """
    blocks = row_blocks(rows)
    tiles = blocks * shape.tiles
    column_bytes = 2 if shape.window else 1
    sizes = {
        "tile": (tiles + 1) * TILE_BYTES if shape.window else 0,
        # entries of the tables, then the ends of their alphabets
        "table": 4 * shape.tables * ((1 << shape.window) + 2) if shape.window else 0,
        "field": 4 * shelves(rows) * shape.fields,
        "row": 2 * rows * shape.ordered,
        "source": 2 * columns * shape.ordered,
        "step": step_bytes(rows, columns, form, kind, shape),
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
    if form == COLUMN:
        return 4 * columns
    if shape.window:
        return 0
    return (2 if kind in TYPES else 4) * ROWS * row_blocks(rows) * groups(columns, form, shape)


def groups(columns: int, form: int, shape: Shape) -> int:
    """Return how many steps a row of planes has."""
    return -(-shape.tiles * shape.tile_columns // shape.wide_group) if form == GROUP else 1

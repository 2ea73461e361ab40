"""Sparse entries of tiles, added to the product of their codes (src/sparse.cuh).

Entries are outliers, or by how much integers exceed the alphabet of their code table.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int32, Int64, Shaped, UInt8
from torch import Tensor

from nearplane.kernels.gpu.cuda.sections import ROWS


@dataclass(frozen=True)
class Sparse:
    """Entries sorted by tile, row and column.

    - `first`: the first entry of each tile, and the number of entries.
    - `count`: entries of each row of a tile.
    - `column`: counted from the first column of the tile.
    """

    first: Int32[Tensor, " tiles_plus_one"]
    count: UInt8[Tensor, "tiles 16"]
    column: Int64[Tensor, " entries"]
    value: Shaped[Tensor, " entries"]


def by_tile(
    row: Int64[Tensor, " entries"],
    column: Int64[Tensor, " entries"],
    value: Shaped[Tensor, " entries"],
    tiles: int,
    shape: tuple[int, int],
) -> Sparse | None:
    """Sort entries by tile; None if a row of a tile has more than 255.

    - `tiles`: tiles of a row block; `shape`: (row blocks, columns of a tile).
    """
    blocks, tile_columns = shape
    place = (row // ROWS * tiles + column // tile_columns) * ROWS + row % ROWS
    order = torch.argsort(place * tile_columns + column % tile_columns)
    count = torch.bincount(place, minlength=blocks * tiles * ROWS).view(-1, ROWS)
    if count.numel() and int(count.max()) > 255:
        return None
    first = torch.nn.functional.pad(count.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    return Sparse(first, count.to(torch.uint8), (column % tile_columns)[order], value[order])

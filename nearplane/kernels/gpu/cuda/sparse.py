"""What tiles hold beside their codes, row by row (src/sparse.cuh)."""

from dataclasses import dataclass

import torch
from jaxtyping import Int32, Int64, Shaped, UInt8
from torch import Tensor

from nearplane.kernels.gpu.cuda.sections import ROWS


@dataclass(frozen=True)
class Sparse:
    """Entries by tile, row and column; `first` of each tile and the end, `count` of its rows."""

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
    """Return entries in the order of tiles; None if a row of a tile has more than a byte counts.

    - `tiles`, `shape`: of a row block; row blocks, and columns of a tile.
    """
    blocks, tile_columns = shape
    place = (row // ROWS * tiles + column // tile_columns) * ROWS + row % ROWS
    order = torch.argsort(place * tile_columns + column % tile_columns)
    count = torch.bincount(place, minlength=blocks * tiles * ROWS).view(-1, ROWS)
    if count.numel() and int(count.max()) > 255:
        return None
    first = torch.nn.functional.pad(count.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    return Sparse(first, count.to(torch.uint8), (column % tile_columns)[order], value[order])

"""Integers -> bit streams of prefix codes, 32 for each tile (src/lanes.cuh).

Each thread ("lane") of a warp decodes one stream of a tile of 16 rows: the integers that the tensor
core instruction wants from that thread, in the order in which it wants them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int32, Int64, UInt8
from torch import Tensor

from nearplane.kernels.gpu.cuda.sections import BLOCK, ROWS
from nearplane.kernels.gpu.cuda.tables import Table

LENGTHS_BYTES = 32  # at the beginning of a tile: one byte for the length of each stream
MOST_COLUMNS = 512  # of a tile; a stream has half as many integers as the tile has columns
SYMBOLS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Streams:
    """The bytes of all tiles of a matrix, one tile after the other.

    - `first`: where each tile begins, in units of 4 bytes, and where the last one ends.
    - `least`: bits of the shortest stream of each tile.
    """

    data: UInt8[Tensor, " bytes"]
    first: Int64[Tensor, " tiles_plus_one"]
    least: Int32[Tensor, " tiles"]


def columns_of_tiles(columns: int) -> tuple[int, int]:
    """Return (tiles of a row block, columns of a tile)."""
    tiles = -(-columns // MOST_COLUMNS)
    return tiles, -(-columns // (tiles * BLOCK)) * BLOCK


def padded(code: Int32[Tensor, "rows columns"], columns: int) -> Int32[Tensor, "rows2 columns2"]:
    """Return the integers, padded with zeros to whole row blocks and to `columns` columns."""
    rows = -code.shape[0] % ROWS
    return torch.nn.functional.pad(code, (0, columns - code.shape[1], 0, rows))


def to_lanes(code: Int32[Tensor, "rows columns"], tile_columns: int) -> Int32[Tensor, "t 32 n"]:
    """Return the integers of every stream, (tiles, 32, n), in the order of decoding.

    `code` has whole tiles: a multiple of 16 rows and of `tile_columns` columns.
    """
    tiles = code.shape[1] // tile_columns
    # row = 8 h + g; column = tile, block, 8 q + 4 s + 2 p + e; lane = 4 g + q
    parts = code.view(-1, 2, 8, tiles, tile_columns // BLOCK, 4, 2, 2, 2)
    ordered = parts.permute(0, 3, 2, 5, 4, 6, 7, 1, 8)
    return ordered.reshape(-1, 32, tile_columns // 2)


def encode(
    code: Int32[Tensor, "rows columns"],
    tile_columns: int,
    tables: list[Table],
    table: Int64[Tensor, " tiles"],
) -> Streams:
    """Encode integers that fill whole tiles.

    - `table`: which of `tables` each tile uses, row block by row block.
    """
    symbols = to_lanes(code, tile_columns)
    at_once = max(1, SYMBOLS_AT_ONCE // (ROWS * tile_columns))
    parts = [
        _encode(symbols[i : i + at_once], tables, table[i : i + at_once])
        for i in range(0, len(symbols), at_once)
    ]
    data, sizes, least = (torch.cat(part) for part in zip(*parts, strict=True))
    return Streams(data, torch.nn.functional.pad(sizes.cumsum(0), (1, 0)), least)


def _encode(
    symbols: Int32[Tensor, "t 32 n"], tables: list[Table], table: Int64[Tensor, " t"]
) -> tuple[Tensor, ...]:
    """Return the bytes of some tiles, their sizes in units of 4 bytes, and `Streams.least`."""
    length, word = _words(symbols, tables, table)
    ends = length.cumsum(2, dtype=torch.int32)
    size = ends[:, :, -1]
    # a byte stores by how many bits a stream exceeds the shortest; streams shorter by more than 255
    # bits are padded
    least = torch.maximum(size.amin(1), size.amax(1) - 255)
    size = torch.maximum(size, least[:, None])
    more = (size - least[:, None]).to(torch.uint8)
    starts = size.cumsum(1) - size + 8 * LENGTHS_BYTES
    words = -(-(starts[:, -1] + size[:, -1]) // 32)
    first = words.cumsum(0) - words
    place = (32 * first[:, None, None] + starts[:, :, None] + ends - length).flatten()
    data = _bits(place, word.flatten(), int(words.sum()))
    places = 4 * first[:, None] + torch.arange(LENGTHS_BYTES, device=data.device)
    data[places] = more
    return data, words, least


def _words(symbols: Tensor, tables: list[Table], table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the length and the code word of every integer."""
    most = max(len(each.length) for each in tables)
    rows = np.zeros((2, len(tables), most), np.int32)
    for i, each in enumerate(tables):
        rows[0, i, : len(each.length)] = each.length
        rows[1, i, : len(each.word)] = each.word
    ends = torch.tensor([[each.low, each.high] for each in tables], dtype=torch.int32)
    low, high = ends.to(symbols.device)[table].T[:, :, None, None]
    place = (symbols.clamp(low, high) - low + most * table[:, None, None]).long()
    length, word = torch.from_numpy(rows).to(symbols.device).flatten(1)
    return length[place], word[place]


def _bits(place: Tensor, word: Tensor, words: int) -> UInt8[Tensor, " bytes"]:
    """Return the bytes of `words` 32-bit words in which code word i begins at bit place[i]."""
    # code words do not overlap, so adding them is the same as OR; one may reach into the next
    # 32-bit word, and one of no bits may lie behind the end
    whole = torch.zeros(words + 2, dtype=torch.int64, device=place.device)
    at = place.long()
    shifted = word.long() << (at & 31)
    at >>= 5
    whole.scatter_add_(0, at, shifted & 0xFFFFFFFF)
    whole.scatter_add_(0, at + 1, shifted >> 32)
    # keep the low 32 bits of every int64
    return whole[:words].view(torch.int32)[::2].contiguous().view(torch.uint8)

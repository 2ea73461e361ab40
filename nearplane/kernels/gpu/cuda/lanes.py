"""Integers -> 32 streams of prefix-code words a tile, and where they lie (src/lanes.cuh)."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int32, Int64, UInt8
from torch import Tensor

from nearplane.kernels.gpu.cuda.sections import BLOCK, ROWS
from nearplane.kernels.gpu.cuda.tables import Table

LENGTHS_BYTES = 32  # a byte a stream, at the beginning of a tile
MOST_COLUMNS = 512  # of a tile: half of them are a stream's integers
SYMBOLS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Streams:
    """All tiles of a matrix, one after the other.

    - `first`: of each tile, in units of 4 bytes, and the end; `least`: bits of its shortest stream.
    """

    data: UInt8[Tensor, " bytes"]
    first: Int64[Tensor, " tiles_plus_one"]
    least: Int32[Tensor, " tiles"]


def columns_of_tiles(columns: int) -> tuple[int, int]:
    """Return how many tiles a row block has, and their columns."""
    tiles = -(-columns // MOST_COLUMNS)
    return tiles, -(-columns // (tiles * BLOCK)) * BLOCK


def padded(code: Int32[Tensor, "rows columns"], columns: int) -> Int32[Tensor, "rows2 columns2"]:
    """Return the integers with zeros up to whole row blocks and `columns`."""
    rows = -code.shape[0] % ROWS
    return torch.nn.functional.pad(code, (0, columns - code.shape[1], 0, rows))


def to_lanes(code: Int32[Tensor, "rows columns"], tile_columns: int) -> Int32[Tensor, "t 32 n"]:
    """Return each stream's integers in the order of decoding; whole tiles go in."""
    tiles = code.shape[1] // tile_columns
    # 8 h + g | tile, block, 8 q + 4 s + 2 p + e
    parts = code.view(-1, 2, 8, tiles, tile_columns // BLOCK, 4, 2, 2, 2)
    ordered = parts.permute(0, 3, 2, 5, 4, 6, 7, 1, 8)
    return ordered.reshape(-1, 32, tile_columns // 2)


def encode(
    code: Int32[Tensor, "rows columns"],
    tile_columns: int,
    tables: list[Table],
    table: Int64[Tensor, " tiles"],
) -> Streams:
    """Return the streams of integers that fill whole tiles.

    - `table`: of each tile, row block by row block.
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
    """Return the bytes of some tiles, their sizes in 4 bytes, and their shortest streams."""
    length, word = _words(symbols, tables, table)
    ends = length.cumsum(2, dtype=torch.int32)
    size = ends[:, :, -1]
    # a byte holds what a stream is longer than the shortest: much shorter ones are filled up
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
    """Return the length and the word of every integer."""
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
    """Return `words` words of 32 bits with every code word at its bit."""
    # words do not overlap, so that adding is joining; a code word may reach into the next one, and
    # an empty one be behind the end
    whole = torch.zeros(words + 2, dtype=torch.int64, device=place.device)
    at = place.long()
    shifted = word.long() << (at & 31)
    at >>= 5
    whole.scatter_add_(0, at, shifted & 0xFFFFFFFF)
    whole.scatter_add_(0, at + 1, shifted >> 32)
    # the low 32 bits of int64 as they lie in memory
    return whole[:words].view(torch.int32)[::2].contiguous().view(torch.uint8)

"""Packing of codes of fixed width for tensor cores (src/planes.cuh).

A 32-bit word has pairs of codes, one of each pair in its lower half and one in its upper half, in
the order in which a thread passes them to the tensor core instruction.
"""

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

from nearplane.kernels.gpu.cuda.sections import BLOCK, CHUNK, ROWS

MOST_CHUNKS = 4  # of a tile, so that one byte can store a column of the tile


def columns_of_tiles(columns: int) -> tuple[int, int]:
    """Return (tiles of a row block, columns of a tile)."""
    chunks = -(-columns // CHUNK)
    tiles = -(-chunks // MOST_CHUNKS)
    return tiles, -(-chunks // tiles) * CHUNK


def encode(
    code: Int32[Tensor, "rows columns"], bits: int, tile_columns: int
) -> UInt8[Tensor, " bytes"]:
    """Return the bytes of integers that fill whole tiles and fit in `bits` bits, signed."""
    rows, columns = code.shape
    raised = code + (1 << (bits - 1))
    # row = 8 h + g; column = tile, chunk, block, 8 q + 2 w + e; these go to lane 4 g + q, pair
    # 8 block + 2 w + h, half e
    parts = raised.view(rows // ROWS, 2, 8, columns // tile_columns, -1, CHUNK // BLOCK, 4, 4, 2)
    pairs = parts.permute(0, 3, 2, 6, 4, 5, 7, 1, 8).reshape(-1, 32, tile_columns // CHUNK, 16, 2)
    halves = [pairs] if bits <= 4 else [pairs & 15, pairs >> 4]
    widths = [bits] if bits <= 4 else [4, bits - 4]
    words = torch.cat([_words(p, w) for p, w in zip(halves, widths, strict=True)], dim=3)
    words = words.reshape(len(words), 32, -1)
    at_once = next(n for n in (4, 2, 1) if words.shape[2] % n == 0)
    loads = words.view(len(words), 32, -1, at_once).transpose(1, 2)
    return loads.contiguous().view(torch.int32).flatten().view(torch.uint8)


def _words(
    pairs: Int32[Tensor, "t 32 chunks 16 2"], bits: int
) -> Int32[Tensor, "t 32 chunks bits"]:
    """Return 16 pairs of codes as `bits` words of 32 bits."""
    per_word = 16 // bits
    halves = pairs[..., 0] | pairs[..., 1] << 16
    whole = halves[..., : bits * per_word].unflatten(3, (bits, per_word))
    shift = torch.arange(per_word, dtype=torch.int32, device=pairs.device) * bits
    # the bits do not overlap, so adding is the same as OR, also into the sign bit
    words = (whole << shift).sum(4, dtype=torch.int32)
    if bits == 3:
        last = halves[..., 15, None] >> torch.arange(3, dtype=torch.int32, device=pairs.device)
        words |= (last & 0x10001) << 15
    return words

"""Golomb-Rice codes of the gaps between rising positions (docs/formats/sparse.md).

A gap is stored in two parts: its low `width` bits, and the rest as a unary number.
"""

import numpy as np
from jaxtyping import Int64

from nearplane.codes.corrupt import require
from nearplane.codes.dense import unpack_bits

WIDEST = 31  # bits of a low part


def gaps_between(position: Int64[np.ndarray, " count"]) -> Int64[np.ndarray, " count"]:
    """Return how many positions are skipped between each position and the one before."""
    return np.diff(position, prepend=-1) - 1


def choose_width(gap: Int64[np.ndarray, " count"]) -> int:
    """Return the width of the low parts under which the gaps take the fewest bits.

    A gap takes width + 1 + ⌊gap / 2^width⌋ bits; for gaps of geometric distribution that is at most
    0.09 bits above their entropy at the best width [Rice71].
    """
    return min(range(WIDEST + 1), key=lambda w: (w + 1) * len(gap) + int((gap >> w).sum()))


def pack_unary(number: Int64[np.ndarray, " count"]) -> bytes:
    """Return the numbers in unary: n is n zeros and a one. Bit 0 of a byte comes first."""
    ends = np.cumsum(number + 1) - 1
    bits = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, np.uint8)
    bits[ends] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_unary(buffer: memoryview, count: int) -> Int64[np.ndarray, " count"]:
    """Return the numbers that `pack_unary` wrote.

    "There MUST be `count` ones, the last of them in the last byte."
    """
    last = len(buffer) == 0 or buffer[-1] > 0
    require(last, "a unary part does not end in its last byte")
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(buffer, np.uint8), bitorder="little"))
    require(len(ends) == count, f"{len(ends)} gaps for {count} entries")
    return np.diff(ends, prepend=-1) - 1


def positions(
    high: Int64[np.ndarray, " count"], packed: memoryview, width: int, places: int
) -> Int64[np.ndarray, " count"]:
    """Return the positions whose gaps have these parts.

    - `high`: the unary parts; `packed`: the low parts, `width` bits each.
    - `places`: the number of positions, below 2^62. CorruptError if one lies beyond it.
    """
    # the sums of both parts are then below 2^62, so that int64 cannot overflow
    require(int(high.sum()) <= places >> width, "the last position is beyond the matrix")
    low = unpack_bits(packed, width, len(high)).astype(np.int64)
    position = np.cumsum((high << width) + low + 1) - 1
    inside = len(position) == 0 or int(position[-1]) < places
    require(inside, "the last position is beyond the matrix")
    return position

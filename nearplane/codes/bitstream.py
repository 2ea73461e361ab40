"""Reading and writing bit fields at any bit of a byte stream, least significant bit first."""

import numpy as np
from jaxtyping import Int64, UInt8, UInt64


def place_fields(
    fields: UInt64[np.ndarray, " count"], place: Int64[np.ndarray, " count"], size: int
) -> UInt8[np.ndarray, " size"]:
    """Return `size` bytes in which fields[i] begins at bit place[i].

    The fields must not overlap, and `place` must rise. Bit b of the stream is bit b mod 8 of
    byte ⌊b / 8⌋.
    """
    word, shift = place >> 6, (place & 63).astype(np.uint64)
    first = np.flatnonzero(np.diff(word, prepend=-1))
    last = np.append(first[1:], len(word)) - 1
    out = np.zeros(size // 8 + 2, np.uint64)
    out[word[first]] = np.bitwise_or.reduceat(fields << shift, first)
    # only the last field of a word reaches into the next word; two shifts, since one by 64 bits
    # would be undefined
    out[word[last] + 1] |= fields[last] >> np.uint64(1) >> (np.uint64(63) - shift[last])
    return out.astype("<u8").view(np.uint8)[:size]


def words_at(stream: UInt8[np.ndarray, " bytes"]) -> Int64[np.ndarray, " bytes_plus_one"]:
    """Return, for every byte, the 64 bits that begin there, and 0 for the place after the last.

    Shifted right by 0 to 7 bits, each still has 57 bits of the stream; above them is the sign.
    """
    padded = np.zeros(len(stream) + 8, np.uint8)
    padded[: len(stream)] = stream
    overlapping = np.ndarray(len(stream) + 1, "<i8", padded, strides=(1,))
    return np.ascontiguousarray(overlapping, np.int64)

"""Canonical Huffman codes: code words and decoding table, both made from code lengths alone.

The rules are quoted from docs/formats/huffman.md.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64, Integer, UInt8, UInt32

from nearplane.codes.corrupt import require

LONGEST = 15  # lengths are stored in 4 bits
AT_ONCE = 4  # symbols that one lookup may return


def check_complete(lengths: UInt8[np.ndarray, " symbols"]) -> None:
    """Raise CorruptError unless the lengths describe a complete prefix code.

    "Σ 2^-length over the symbols of length > 0 MUST be exactly 1; or exactly one symbol has a
    length, and it is 1."
    """
    used = lengths[lengths > 0].astype(np.int64)
    lonely = used.tolist() == [1]
    full = int((1 << (LONGEST - used)).sum()) == 1 << LONGEST
    require(lonely or full, "code lengths do not form a complete prefix code")


def code_words(lengths: UInt8[np.ndarray, " symbols"]) -> UInt32[np.ndarray, " symbols"]:
    """Return the code word of every symbol, its first bit in bit 0.

    "Code words are assigned in order of (length, symbol), counting upwards from 0 as in DEFLATE."
    """
    order = _order(lengths)
    room = 1 << (LONGEST - lengths[order].astype(np.int64))
    words = np.zeros(len(lengths), np.uint32)
    # the words left-aligned in LONGEST bits; reversing the bits brings the first one to bit 0
    words[order] = _reversed_bits(np.cumsum(room) - room, LONGEST)
    return words


@dataclass(frozen=True)
class Lookup:
    """A decoding table, indexed by the next `window` bits of a stream.

    - `found`: how many whole symbols those bits begin with, 1 .. AT_ONCE.
    - `value`: the values of those symbols; entries after the last one are meaningless.
    - `bits[w, k]`: length in bits of the first k of them, at index w.
    """

    window: int
    found: UInt8[np.ndarray, " patterns"]
    value: Int32[np.ndarray, "patterns at_once"]
    bits: Int64[np.ndarray, "patterns at_once_plus_one"]


def lookup(
    lengths: UInt8[np.ndarray, " symbols"], values: Int32[np.ndarray, " symbols"], window: int
) -> Lookup:
    """Return the decoding table of a complete prefix code.

    The code has two symbols or more, and no code word is longer than `window` bits.
    """
    order = _order(lengths)
    room = 1 << (window - lengths[order].astype(np.int64))
    pattern = np.arange(1 << window)
    # with bits reversed, the patterns that begin with one code word are consecutive
    single = np.repeat(order, room)[_reversed_bits(pattern, window)]
    value = np.empty((1 << window, AT_ONCE), np.int32)
    bits = np.zeros((1 << window, AT_ONCE + 1), np.int64)
    found = np.zeros(1 << window, np.uint8)
    for k in range(AT_ONCE):
        symbol = single[pattern >> bits[:, k]]
        value[:, k] = values[symbol]
        end = bits[:, k] + lengths[symbol]
        whole = (end <= window) & (found == k)
        bits[:, k + 1] = np.where(whole, end, bits[:, k])
        found += whole
    return Lookup(window, found, value, bits)


def _order(lengths: np.ndarray) -> np.ndarray:
    """Return the symbols that occur, in order of (length, symbol)."""
    return np.argsort(lengths, kind="stable")[np.count_nonzero(lengths == 0) :]


def _reversed_bits(numbers: Integer[np.ndarray, " n"], width: int) -> Int64[np.ndarray, " n"]:
    """Return the low `width` bits of each number in opposite order."""
    result = np.zeros(len(numbers), np.int64)
    for bit in range(width):
        result |= ((numbers >> bit) & 1) << (width - 1 - bit)
    return result

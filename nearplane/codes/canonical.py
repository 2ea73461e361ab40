"""Canonical prefix codes: lengths alone give the code words and the lookup table."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64, Integer, UInt8, UInt32

from nearplane.codes.corrupt import require

LONGEST = 15  # lengths are stored in 4 bits
AT_ONCE = 4  # symbols that one lookup may return


def check_complete(lengths: UInt8[np.ndarray, " symbols"]) -> None:
    """Refuse lengths that do not describe a complete code.

    "Σ 2^-length over the symbols of length > 0 MUST be exactly 1; or exactly one symbol has a
    length, and it is 1."
    """
    used = lengths[lengths > 0].astype(np.int64)
    lonely = used.tolist() == [1]
    full = int((1 << (LONGEST - used)).sum()) == 1 << LONGEST
    require(lonely or full, "code lengths do not form a complete prefix code")


def code_words(lengths: UInt8[np.ndarray, " symbols"]) -> UInt32[np.ndarray, " symbols"]:
    """Return each symbol's code word, its first bit in bit 0.

    "Code words are assigned in order of (length, symbol), counting upwards from 0 as in DEFLATE."
    """
    order = _order(lengths)
    room = 1 << (LONGEST - lengths[order].astype(np.int64))
    words = np.zeros(len(lengths), np.uint32)
    # the count, left-aligned in LONGEST bits; reversed, its first bit comes to bit 0
    words[order] = _reversed_bits(np.cumsum(room) - room, LONGEST)
    return words


@dataclass(frozen=True)
class Lookup:
    """What the next `window` bits of a stream say, for each of their 2^window patterns.

    - `found`: how many whole symbols they begin with, 1 .. AT_ONCE.
    - `value`: those symbols' values; what follows the last is meaningless.
    - `bits[w, k]`: length of the first k of them.
    """

    window: int
    found: UInt8[np.ndarray, " patterns"]
    value: Int32[np.ndarray, "patterns at_once"]
    bits: Int64[np.ndarray, "patterns at_once_plus_one"]


def lookup(
    lengths: UInt8[np.ndarray, " symbols"], values: Int32[np.ndarray, " symbols"], window: int
) -> Lookup:
    """Return the table of a complete code with at least two symbols, none beyond `window` bits."""
    order = _order(lengths)
    room = 1 << (window - lengths[order].astype(np.int64))
    pattern = np.arange(1 << window)
    # left-aligned, code words are consecutive intervals of the patterns
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
    """Return the present symbols in order of (length, symbol)."""
    return np.argsort(lengths, kind="stable")[np.count_nonzero(lengths == 0) :]


def _reversed_bits(numbers: Integer[np.ndarray, " n"], width: int) -> Int64[np.ndarray, " n"]:
    """Return the low `width` bits of each number in opposite order."""
    result = np.zeros(len(numbers), np.int64)
    for bit in range(width):
        result |= ((numbers >> bit) & 1) << (width - 1 - bit)
    return result

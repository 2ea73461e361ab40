"""Prefix codes for the lanes: an alphabet, its word lengths, and the table that decodes them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8, UInt32

from nearplane.codes.canonical import code_words
from nearplane.codes.lengths import code_lengths

ESCAPE_BITS = 32  # what an integer beyond the alphabet costs beside its code


@dataclass(frozen=True)
class Table:
    """A code for low .. high; integers beyond are coded as the nearer end.

    - `length`, `word`: of each symbol, the word's first bit in bit 0.
    - `bits`: what the counts it was made for take, escapes included.
    """

    window: int
    low: int
    high: int
    length: UInt8[np.ndarray, " symbols"]
    word: UInt32[np.ndarray, " symbols"]
    bits: int

    def entries(self) -> UInt32[np.ndarray, " patterns"]:
        """Return, for each pattern of `window` bits, value (bf16) << 16 | length."""
        value = np.arange(self.low, self.high + 1, dtype=np.float32)
        entry = value.view(np.uint32) & 0xFFFF0000 | self.length.astype(np.uint32)
        table = np.zeros(1 << self.window, np.uint32)
        for symbol in np.flatnonzero(self.length):
            table[int(self.word[symbol]) :: 1 << int(self.length[symbol])] = entry[symbol]
        if len(self.length) == 1:
            table[:] = entry[0]
        return table


def best_table(low: int, counts: Int64[np.ndarray, " values"], window: int) -> Table | None:
    """Return the cheapest code for integers low, low + 1, ... that occur `counts` times.

    The alphabet, within what occurs and `window` bits, is found by search. None if there is
    no such alphabet.
    """
    present = np.flatnonzero(counts)
    if not len(present):
        return Table(window, 0, 0, np.zeros(1, np.uint8), np.zeros(1, np.uint32), 0)
    first, last = low + int(present[0]), low + int(present[-1])
    tables = [
        _table(low, counts, bottom, top, window)
        for bottom, top in _alphabets(low, counts) | {_middle(first, last, window)}
        if first <= bottom <= top <= last and top - bottom < 1 << window
    ]
    return min(tables, key=lambda table: table.bits, default=None)


def _alphabets(low: int, counts: Int64[np.ndarray, " values"]) -> set[tuple[int, int]]:
    """Return what may be left of the integers when rare ones on both sides are cut off."""
    before, total = np.cumsum(counts), int(counts.sum())
    after = np.cumsum(counts[::-1])[::-1]
    found = set()
    for share in (0.0, *(2.0**-k for k in range(6, 15))):
        bottom = int(np.argmax(before > share * total))
        top = len(counts) - 1 - int(np.argmax(after[::-1] > share * total))
        # bf16 holds every integer up to 256
        found.add((max(low + bottom, -256), min(low + top, 256)))
    return found


def _middle(first: int, last: int, window: int) -> tuple[int, int]:
    """Return the integers around 0 that a window has words for."""
    return max(first, -(1 << (window - 1))), min(last, (1 << (window - 1)) - 1)


def _table(first: int, counts: np.ndarray, low: int, high: int, window: int) -> Table:
    inside = counts[low - first : high - first + 1].copy()
    below, above = int(counts[: low - first].sum()), int(counts[high - first + 1 :].sum())
    inside[0] += below
    inside[-1] += above
    if len(inside) == 1:
        lengths = np.zeros(1, np.uint8)
    else:
        # a lone symbol has a partner, so that the code is complete; every symbol has a word
        lengths = code_lengths(np.maximum(inside, 1), window)
    words = code_words(lengths) if len(inside) > 1 else np.zeros(1, np.uint32)
    bits = int((inside * lengths).sum()) + ESCAPE_BITS * (below + above)
    return Table(window, low, high, lengths, words, bits)

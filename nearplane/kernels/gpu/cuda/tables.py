"""Prefix codes for the CUDA kernels: alphabet, code words, and the table that decodes them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8, UInt32

from nearplane.codes.canonical import code_words
from nearplane.codes.lengths import code_lengths

ESCAPE_BITS = 32  # about what an integer beyond the alphabet costs in addition to its code word


@dataclass(frozen=True)
class Table:
    """A prefix code for the integers low .. high; those beyond are clipped.

    - `window`: the longest code word in bits.
    - `length`, `word`: the code word of each integer, its first bit in bit 0.
    - `bits`: size of the integers that the code was made for, escapes included.
    """

    window: int
    low: int
    high: int
    length: UInt8[np.ndarray, " symbols"]
    word: UInt32[np.ndarray, " symbols"]
    bits: int

    def entries(self) -> UInt32[np.ndarray, " patterns"]:
        """Return the decoding table, indexed by `window` bits: value as bf16 << 16 | length."""
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

    About a dozen alphabets low .. high are tried. None if none of them fits code words of `window`
    bits.
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
    """Return ranges of integers that leave out rare ones at both ends."""
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
    """Return the range around 0 that code words of `window` bits can tell apart."""
    return max(first, -(1 << (window - 1))), min(last, (1 << (window - 1)) - 1)


def _table(first: int, counts: np.ndarray, low: int, high: int, window: int) -> Table:
    inside = counts[low - first : high - first + 1].copy()
    below, above = int(counts[: low - first].sum()), int(counts[high - first + 1 :].sum())
    inside[0] += below
    inside[-1] += above
    if len(inside) == 1:
        lengths = np.zeros(1, np.uint8)
    else:
        # every integer gets a code word, even one that does not occur
        lengths = code_lengths(np.maximum(inside, 1), window)
    words = code_words(lengths) if len(inside) > 1 else np.zeros(1, np.uint32)
    bits = int((inside * lengths).sum()) + ESCAPE_BITS * (below + above)
    return Table(window, low, high, lengths, words, bits)

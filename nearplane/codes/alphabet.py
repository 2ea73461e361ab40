"""Choosing the alphabet of a Huffman code from the histogram of the integers.

Integers in the alphabet have a code word of their own. For all others the escape symbol is coded,
and the integers themselves are stored apart, in a fixed number of bits.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int32, Int64, Integer, UInt16

from nearplane.codes.dense import packed_bytes, width_of
from nearplane.codes.lengths import code_cost
from nearplane.rows import in_parts

WIDEST = 2**16 - 1  # span is stored in 16 bits
PIECE = 2**18  # integers counted at once
CUTS = 10  # thresholds of frequency that are tried, besides 0


@dataclass(frozen=True)
class Alphabet:
    """Symbols 0 .. span − 1 stand for the integers low + symbol; symbol `span` is the escape.

    - `counts`: how often each of the span + 1 symbols occurs.
    - `escape_low`, `escape_width`: escaped integers are stored as their distance from
      `escape_low`, `escape_width` bits each.
    - `bits`: size of all code words, code lengths and escaped integers together.
    """

    low: int
    counts: Int64[np.ndarray, " span_plus_one"]
    escape_low: int
    escape_width: int
    bits: int

    @property
    def escapes(self) -> int:
        """How many integers use the escape symbol."""
        return int(self.counts[-1])


def histogram(
    integers: Integer[np.ndarray, " count"],
) -> tuple[Int64[np.ndarray, " distinct"], Int64[np.ndarray, " distinct"]]:
    """Return the distinct integers in rising order and how often each occurs."""
    if not len(integers):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)

    def counted(some: slice) -> tuple[torch.Tensor, torch.Tensor]:
        values, counts = _histogram(integers[some])
        return torch.from_numpy(values), torch.from_numpy(counts)

    parts = in_parts(counted, len(integers), PIECE)
    values, counts = (np.concatenate(column) for column in zip(*parts, strict=True))
    if len(parts) > 1:
        values, place = np.unique(values, return_inverse=True)
        # bincount adds weights in float64, exact up to 2^53
        counts = np.bincount(place, weights=counts).astype(np.int64)
    return values, counts


def _histogram(
    integers: Integer[np.ndarray, " count"],
) -> tuple[Int64[np.ndarray, " distinct"], Int64[np.ndarray, " distinct"]]:
    low, high = int(integers.min()), int(integers.max())
    if high - low > PIECE:
        values, counts = np.unique(integers, return_counts=True)
        return values.astype(np.int64), counts.astype(np.int64)
    counts = np.zeros(high - low + 1, np.int64)
    # a piece at a time: 64-bit copies of a whole matrix would take gigabytes
    for at in range(0, len(integers), PIECE):
        offset = integers[at : at + PIECE].astype(np.int64) - low
        counts += np.bincount(offset, minlength=len(counts))
    values = np.flatnonzero(counts)
    return values + low, counts[values]


def entropy(counts: Integer[np.ndarray, " distinct"]) -> float:
    """Return −Σ p log₂ p in bits per symbol, with p = count / Σ count."""
    used = np.asarray(counts)[np.asarray(counts) > 0].astype(np.float64)
    if len(used) < 2:
        return 0.0
    return float(np.log2(used.sum()) - (used * np.log2(used)).sum() / used.sum())


def choose_alphabet(
    values: Int64[np.ndarray, " distinct"], counts: Int64[np.ndarray, " distinct"], limit: int
) -> Alphabet:
    """Return the alphabet of fewest bits among about ten ranges of integers.

    Each range goes from the first to the last integer that occurs more often than a threshold.

    - `values`, `counts`: the histogram; `limit`: the longest code word in bits.

    Cost: one package-merge a range, 1 ms for a 3-bit matrix.
    """
    candidates = [_alphabet(values, counts, first, stop, limit) for first, stop in _cuts(counts)]
    return min((c for c in candidates if c is not None), key=lambda c: c.bits)


def _cuts(counts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the different ranges (first, stop) of indices into `counts`, the empty one first.

    Thresholds are 0 and, evenly spaced on a logarithmic scale, 1 .. 1 + total / 64.
    """
    seen = {(0, 0)}
    yield 0, 0
    most = 1 + int(counts.sum()) / 64
    for cut in [0.0] + [most ** (k / (CUTS - 1)) for k in range(CUTS)]:
        frequent = np.flatnonzero(counts > cut)
        part = (int(frequent[0]), int(frequent[-1]) + 1) if len(frequent) else (0, 0)
        if part not in seen:
            seen.add(part)
            yield part


def _alphabet(
    values: np.ndarray, counts: np.ndarray, first: int, stop: int, limit: int
) -> Alphabet | None:
    """Return the alphabet of values[first:stop], or None where the format cannot hold it."""
    low = int(values[first]) if stop > first else 0
    span = int(values[stop - 1]) + 1 - low if stop > first else 0
    outside = np.concatenate([values[:first], values[stop:]])
    if span > WIDEST or stop - first + (len(outside) > 0) > 1 << limit:
        return None
    table = np.zeros(span + 1, np.int64)
    table[values[first:stop] - low] = counts[first:stop]
    table[span] = counts.sum() - table.sum()
    escape_low = int(outside.min()) if len(outside) else 0
    width = width_of(int(outside.max()) - escape_low) if len(outside) else 0
    aside = 8 * packed_bytes(width, int(table[span]))
    bits = code_cost(table, limit) + 8 * packed_bytes(4, span + 1) + aside
    return Alphabet(low, table, escape_low, width, bits)


def symbols_of(
    integers: Int32[np.ndarray, " count"], alphabet: Alphabet
) -> UInt16[np.ndarray, " count"]:
    """Return the symbol of every integer: the escape symbol for those outside the alphabet."""
    # the unsigned difference wraps around, so that integers below `low` become large too
    offset = integers.view(np.uint32) - np.uint32(alphabet.low % 2**32)
    return np.minimum(offset, np.uint32(len(alphabet.counts) - 1)).astype(np.uint16)

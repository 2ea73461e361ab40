"""Contexts and tables under which a matrix of integers takes the fewest bytes."""

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt8

from nearplane.codes.classes import WIDTH, class_frequencies, class_lengths
from nearplane.codes.contexts import Contexts, Joint, candidates, choose_span, joint_counts
from nearplane.codes.dense import packed_bytes, width_of
from nearplane.codes.frequencies import PRECISION, TOTAL, UNIT
from nearplane.codes.shapes import fit_shapes
from nearplane.codes.stored_tables import LIKELIEST, LONGEST, StoredTables

BAND = 2**18  # integers in a stream, about
MOST_BANDS = 2**16 - 1
HEADER_BYTES = 11
BAND_BYTES = 4 + 4 + 2  # a stream's size, its first state, and half a word
TABLE_BITS = 25  # about what a table's shape costs
GAIN = 0.72  # ½ log₂ e: bits that a number fitted to integers makes them look cheaper by
PEAKED = 18  # exponent of the escape symbol beside a symbol that is nearly certain


@dataclass(frozen=True)
class Tables:
    """What integers cost, context by context: the result of `fit`.

    - `contexts`: the classes of the rows that were seen and of the columns.
    - `stored`: the tables as a stream holds them.
    - `counts`: how often each context's symbols occur, the escape symbol last.
    - `escape_low`, `escape_width`: escaped integers are escape_low + `escape_width` bits.
    """

    contexts: Contexts
    stored: StoredTables
    counts: Int64[np.ndarray, "contexts symbols"]
    escape_low: int
    escape_width: int

    @property
    def span(self) -> int:
        """The largest |z| that has a length of its own; integers beyond it escape."""
        return self.stored.span

    @property
    def escapes(self) -> int:
        return int(self.counts[:, -1].sum())

    @cached_property
    def frequency(self) -> Int64[np.ndarray, "tables symbols"]:
        """The tables' frequencies; they add up to 2^24."""
        return self.stored.frequencies()

    @cached_property
    def lengths(self) -> Float32[np.ndarray, "contexts symbols"]:
        """Bits of z = −span .. span in every context: −log₂ of its probability, at most 24."""
        return self._bits()[:, :-1].astype(np.float32)

    def likely_bytes(self, weights: int) -> int:
        """Return about the bytes of `weights` integers whose rows are like these."""
        share = weights / (len(self.contexts.row) * len(self.contexts.column))
        return ceil(self.priced(share))

    def priced(self, share: float = 1.0) -> float:
        """Return the likely bytes of a matrix with `share` times as many rows, all like these."""
        data = share * float((self.counts * self._bits()).sum())
        escaped = share * self.escapes * self.escape_width / 8 + 5 if self.escapes else 0
        bands = band_count(ceil(share * len(self.contexts.row)), len(self.contexts.column))
        fixed = HEADER_BYTES + bands * BAND_BYTES + len(self.stored.to_bytes())
        return fixed + escaped + (data + _class_bits(self.contexts, share)) / 8

    def _bits(self) -> Float64[np.ndarray, "contexts symbols"]:
        return (PRECISION - np.log2(self.frequency))[self.stored.table]


def band_count(rows: int, columns: int) -> int:
    """Return into how many bands of about BAND integers the rows are cut."""
    wanted = max(1, min(rows, round(rows * columns / BAND), MOST_BANDS))
    # with bands of whole rows, fewer may do
    return -(-rows // -(-rows // wanted))


def choose_contexts(code: Int32[np.ndarray, "rows columns"]) -> Contexts:
    """Return the classes of rows and columns under which `code` takes the fewest bytes."""
    return fit(code).contexts


def fit(
    code: Int32[np.ndarray, "rows columns"], rows: int | None = None, contexts: bool = True
) -> Tables:
    """Return contexts and tables for the integers, or for `rows` rows of which they are some.

    Tried are classes a quarter, a half and a whole octave of spread apart, of rows, columns or
    both, and one context for all. Cost: about five passes over the integers, and 3 ms.
    """
    if not code.size:
        raise ValueError(f"tables of no integers: {code.shape}")
    span = choose_span(code)
    finest = joint_counts(code, span, split=contexts)
    share = (rows or len(code)) / len(code)
    ways = [_Way.of(joint, share) for joint in candidates(finest)]
    escape = _escape_range(code, span, int(ways[0].counts[:, -1].sum()))
    best = min(ways, key=lambda way: way.bits)
    found = _tables(ways[0], span, escape)
    if best is not ways[0]:
        found += _tables(best, span, escape)
    return min(found, key=lambda tables: tables.priced(share))


@dataclass(frozen=True)
class _Way:
    """Contexts, which of them share a table, and about how many bits that costs."""

    contexts: Contexts
    counts: Int64[np.ndarray, "contexts symbols"]
    table: Int64[np.ndarray, " contexts"]
    bits: float

    @classmethod
    def of(cls, joint: Joint, share: float) -> "_Way":
        counts = joint.by_context()
        table, data = _shared_tables(counts, share)
        side = _class_bits(joint.contexts, share) + len(counts)
        return cls(joint.contexts, counts, table, data + side)


def _shared_tables(
    counts: Int64[np.ndarray, "contexts symbols"], share: float
) -> tuple[Int64[np.ndarray, " contexts"], float]:
    """Return each context's table and about the bits of the integers and the tables.

    Neighbours are joined, those first that gain most, while a table for both is cheaper than two.
    """
    groups, first = _folded(counts).astype(np.float64), np.arange(len(counts))
    signs = share * float(groups[:, 1:-1].sum())
    alone = _table_bits(groups, share)
    both = _table_bits(groups[:-1] + groups[1:], share)
    while len(both):
        gain = alone[:-1] + alone[1:] - both
        at = int(gain.argmax())
        if gain[at] <= 0:
            break
        groups[at] += groups[at + 1]
        alone[at] = both[at]
        groups, alone = np.delete(groups, at + 1, axis=0), np.delete(alone, at + 1)
        first, both = np.delete(first, at + 1), np.delete(both, at)
        near = slice(max(at - 1, 0), at + 1)
        both[near] = _table_bits(groups[:-1][near] + groups[1:][near], share)
    table = np.searchsorted(first, np.arange(len(counts)), side="right") - 1
    return table.astype(np.int64), float(alone.sum()) + signs


def _folded(counts: Int64[np.ndarray, "tables symbols"]) -> Int64[np.ndarray, "tables sizes"]:
    """Return the counts of |z| = 0 .. span and of the escape symbol."""
    span = counts.shape[1] // 2 - 1
    result = counts[:, span:].copy()
    result[:, 1:-1] += counts[:, span - 1 :: -1]
    return result


def _table_bits(groups: Float64[np.ndarray, "tables symbols"], share: float) -> np.ndarray:
    """Return the bits of integers of these |z| and of a table for them, without their signs."""
    total = groups.sum(axis=1)
    entropy = _xlog2x(total) - _xlog2x(groups).sum(axis=1)
    return share * (entropy + GAIN * np.count_nonzero(groups, axis=1)) + TABLE_BITS


def _xlog2x(x: np.ndarray) -> np.ndarray:
    return x * np.log2(np.maximum(x, 1))


def _tables(way: _Way, span: int, escape: tuple[int, int]) -> list[Tables]:
    """Return both forms of the tables: as shapes, and symbol by symbol."""
    first = np.flatnonzero(np.diff(way.table, prepend=-1))
    counts = np.add.reduceat(way.counts, first, axis=0)
    shapes = fit_shapes(_folded(counts)[:, :-1].astype(np.float64))
    none = np.zeros(len(counts), np.int64)
    shaped = StoredTables(span, way.table, none, shapes)
    listed = StoredTables(span, way.table, none, _listed(counts, shaped.frequencies()))
    both = (replace(s, escape=_escape_exponents(counts, s.frequencies())) for s in (shaped, listed))
    return [Tables(way.contexts, stored, way.counts, *escape) for stored in both]


def _listed(
    counts: Int64[np.ndarray, "tables symbols"], shaped: Int64[np.ndarray, "tables symbols"]
) -> UInt8[np.ndarray, "tables integers"]:
    """Return the lengths of what was counted, and of one integer more of the shape's."""
    share = counts[:, :-1] + shaped[:, :-1] / TOTAL
    length = np.rint(UNIT * np.log2(share.max(axis=1, keepdims=True) / share))
    return np.minimum(length, LONGEST).astype(np.uint8)


def _escape_exponents(
    counts: Int64[np.ndarray, "tables symbols"], frequency: Int64[np.ndarray, "tables symbols"]
) -> Int64[np.ndarray, " tables"]:
    """Return the logarithms of the escape symbols' frequencies, 0 where none escapes."""
    share = counts[:, -1] / np.maximum(counts.sum(axis=1), 1)
    exponent = np.rint(PRECISION + np.log2(np.maximum(share, 2.0**-PRECISION)))
    exponent = exponent.clip(0, PRECISION - 1).astype(np.int64)
    peaked = frequency[:, :-1].max(axis=1) > LIKELIEST
    return np.where(peaked, np.maximum(exponent, PEAKED), exponent)


def _escape_range(
    code: Int32[np.ndarray, "rows columns"], span: int, escapes: int
) -> tuple[int, int]:
    """Return the smallest escaped integer and how many bits hold the others' distance to it."""
    if not escapes:
        return 0, 0
    escaped = code[(code < -span) | (code > span)]
    low = int(escaped.min())
    return low, width_of(int(escaped.max()) - low)


def _class_bits(contexts: Contexts, share: float) -> float:
    """Return the bits of all classes and of their lists of lengths.

    Columns whose class was fitted to a share of the rows look cheaper than they are, by ½ log₂ e
    bits of every row that was seen.
    """
    row, column = (_list_bits(classes) for classes in (contexts.row, contexts.column))
    flattered = len(contexts.column) if contexts.column_classes > 1 else 0
    return share * row + column + GAIN * flattered * max(0.0, share - 1)


def _list_bits(classes: UInt8[np.ndarray, " n"]) -> float:
    lengths = class_lengths(classes)
    if len(lengths) < 2:
        return 0.0
    coded = np.bincount(classes) @ (PRECISION - np.log2(class_frequencies(lengths)))
    return float(coded) + 8 * packed_bytes(WIDTH, len(lengths))

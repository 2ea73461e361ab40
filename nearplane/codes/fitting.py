"""Choosing the contexts and probability tables under which integers take the fewest bytes.

See contexts.py for what a context is, and stored_tables.py for how tables are stored.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt8

from nearplane.codes.classes import WIDTH, class_frequencies, class_lengths
from nearplane.codes.contexts import Contexts, JointHistogram, candidates, choose_span, joint_counts
from nearplane.codes.dense import packed_bytes, width_of
from nearplane.codes.frequencies import PRECISION, TOTAL, UNIT
from nearplane.codes.shapes import fit_shapes
from nearplane.codes.stored_tables import LONGEST, MAX_FREQUENCY, StoredTables
from nearplane.op import Op

BAND = 2**18  # about how many integers one band, and so one bit stream, has
MOST_BANDS = 2**16 - 1
HEADER_BYTES = 11
BAND_BYTES = 4 + 4 + 2  # of a band: its size field, the first state, and half a word of padding
TABLE_BITS = 25  # about what the parameters of one table cost
# ½ log₂ e: with a model fitted to the integers themselves, their entropy comes out too low by about
# this many bits for each fitted parameter
OVERFIT_BITS = 0.72
# where one symbol is nearly certain, the escape symbol's frequency is at least 2^this, so that no
# frequency exceeds MAX_FREQUENCY
MIN_ESCAPE_EXPONENT = 18


@dataclass(frozen=True)
class Tables:
    """The probability tables of every context, which say what each integer costs.

    `fit` returns these.

    - `contexts`: the classes of the rows given to `fit` and of the columns.
    - `stored`: the tables in the form in which they are stored.
    - `counts`: how often each symbol occurs in each context, the escape symbol last.
    - `escape_low`, `escape_width`: integers beyond ±span are stored as their distance from
      `escape_low`, `escape_width` bits each.
    """

    contexts: Contexts
    stored: StoredTables
    counts: Int64[np.ndarray, "contexts symbols"]
    escape_low: int
    escape_width: int

    @property
    def span(self) -> int:
        """The largest |integer| with a symbol of its own; those beyond use the escape symbol."""
        return self.stored.span

    @property
    def escapes(self) -> int:
        """How many integers use the escape symbol."""
        return int(self.counts[:, -1].sum())

    @cached_property
    def frequency(self) -> Int64[np.ndarray, "tables symbols"]:
        """The frequencies of the symbols; they add up to 2^24 in each table."""
        return self.stored.frequencies()

    @cached_property
    def lengths(self) -> Float32[np.ndarray, "contexts symbols"]:
        """−log₂ of the probability of −span .. span in every context: bits, at most 24."""
        return self._bits()[:, :-1].astype(np.float32)

    def likely_bytes(self, weights: int) -> int:
        """Estimate the bytes of a matrix of `weights` integers whose rows are like those seen."""
        share = weights / (len(self.contexts.row) * len(self.contexts.column))
        return ceil(self.estimated_bytes(share))

    def estimated_bytes(self, share: float = 1.0) -> float:
        """Estimate the bytes of a matrix with `share` times as many rows as were seen."""
        data = share * float((self.counts * self._bits()).sum())
        escaped = share * self.escapes * self.escape_width / 8 + 5 if self.escapes else 0
        bands = band_count(ceil(share * len(self.contexts.row)), len(self.contexts.column))
        fixed = HEADER_BYTES + bands * BAND_BYTES + len(self.stored.to_bytes())
        return fixed + escaped + (data + _class_bits(self.contexts, share)) / 8

    def _bits(self) -> Float64[np.ndarray, "contexts symbols"]:
        return (PRECISION - np.log2(self.frequency))[self.stored.table]


def band_count(rows: int, columns: int) -> int:
    """Return into how many bands of about BAND integers to split the rows."""
    wanted = max(1, min(rows, round(rows * columns / BAND), MOST_BANDS))
    # since bands have whole rows, fewer of the same height may be enough
    return -(-rows // -(-rows // wanted))


def choose_contexts(code: Int32[np.ndarray, "rows columns"]) -> Contexts:
    """Return the classes of rows and columns under which `code` takes the fewest bytes."""
    return fit(code).contexts


@Op
def fit(
    code: Int32[np.ndarray, "rows columns"], rows: int | None = None, contexts: bool = True
) -> Tables:
    """Return the contexts and tables under which the integers take the fewest bytes.

    It tries one context for all integers; and classes of rows, of columns or of both whose root
    mean squares differ by factors of 2^¼, 2^½ or 2.

    - `rows`: rows of the whole matrix, if `code` has only a sample of them.
    - `contexts`: False: one context for all integers.

    Cost: about five passes over the integers, and 3 ms. ValueError if there are no integers.
    """
    if not code.size:
        raise ValueError(f"tables of no integers: {code.shape}")
    span = choose_span(code)
    finest = joint_counts(code, span, split=contexts)
    share = (rows or len(code)) / len(code)
    tried = [_Candidate.of(joint, share) for joint in candidates(finest)]
    escape = _escape_range(code, span, int(tried[0].counts[:, -1].sum()))
    best = min(tried, key=lambda candidate: candidate.bits)
    found = _tables(tried[0], span, escape)
    if best is not tried[0]:
        found += _tables(best, span, escape)
    return min(found, key=lambda tables: tables.estimated_bytes(share))


@dataclass(frozen=True)
class _Candidate:
    """One choice of contexts, which of them share a table, and about how many bits it costs."""

    contexts: Contexts
    counts: Int64[np.ndarray, "contexts symbols"]
    table: Int64[np.ndarray, " contexts"]
    bits: float

    @classmethod
    def of(cls, joint: JointHistogram, share: float) -> "_Candidate":
        counts = joint.by_context()
        table, data = _shared_tables(counts, share)
        side = _class_bits(joint.contexts, share) + len(counts)
        return cls(joint.contexts, counts, table, data + side)


def _shared_tables(
    counts: Int64[np.ndarray, "contexts symbols"], share: float
) -> tuple[Int64[np.ndarray, " contexts"], float]:
    """Return each context's table, and about the bits of the integers and of the tables.

    Contexts begin with a table each. Greedily, the two neighbouring tables whose merger saves most
    are merged, until no merger saves bits.
    """
    groups, first = _by_magnitude(counts).astype(np.float64), np.arange(len(counts))
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


def _by_magnitude(counts: Int64[np.ndarray, "tables symbols"]) -> Int64[np.ndarray, "tables sizes"]:
    """Return the counts of |integer| = 0 .. span, and of the escape symbol."""
    span = counts.shape[1] // 2 - 1
    result = counts[:, span:].copy()
    result[:, 1:-1] += counts[:, span - 1 :: -1]
    return result


def _table_bits(groups: Float64[np.ndarray, "tables symbols"], share: float) -> np.ndarray:
    """Return the bits of integers with these |integer| and of their table, without sign bits."""
    total = groups.sum(axis=1)
    entropy = _xlog2x(total) - _xlog2x(groups).sum(axis=1)
    return share * (entropy + OVERFIT_BITS * np.count_nonzero(groups, axis=1)) + TABLE_BITS


def _xlog2x(x: np.ndarray) -> np.ndarray:
    return x * np.log2(np.maximum(x, 1))


def _tables(candidate: _Candidate, span: int, escape: tuple[int, int]) -> list[Tables]:
    """Return the tables in both stored forms: a few parameters each, and every symbol's length."""
    first = np.flatnonzero(np.diff(candidate.table, prepend=-1))
    counts = np.add.reduceat(candidate.counts, first, axis=0)
    shapes = fit_shapes(_by_magnitude(counts)[:, :-1].astype(np.float64))
    none = np.zeros(len(counts), np.int64)
    shaped = StoredTables(span, candidate.table, none, shapes)
    listed = StoredTables(span, candidate.table, none, _listed(counts, shaped.frequencies()))
    both = (replace(s, escape=_escape_exponents(counts, s.frequencies())) for s in (shaped, listed))
    return [Tables(candidate.contexts, stored, candidate.counts, *escape) for stored in both]


def _listed(
    counts: Int64[np.ndarray, "tables symbols"], shaped: Int64[np.ndarray, "tables symbols"]
) -> UInt8[np.ndarray, "tables integers"]:
    """Return every symbol's code length, from the counts plus one integer distributed as `shaped`.

    The addition keeps lengths finite for integers that were not seen.
    """
    share = counts[:, :-1] + shaped[:, :-1] / TOTAL
    length = np.rint(UNIT * np.log2(share.max(axis=1, keepdims=True) / share))
    return np.minimum(length, LONGEST).astype(np.uint8)


def _escape_exponents(
    counts: Int64[np.ndarray, "tables symbols"], frequency: Int64[np.ndarray, "tables symbols"]
) -> Int64[np.ndarray, " tables"]:
    """Return log₂ of the escape symbol's frequency in every table, 0 where it does not occur."""
    share = counts[:, -1] / np.maximum(counts.sum(axis=1), 1)
    exponent = np.rint(PRECISION + np.log2(np.maximum(share, 2.0**-PRECISION)))
    exponent = exponent.clip(0, PRECISION - 1).astype(np.int64)
    nearly_certain = frequency[:, :-1].max(axis=1) > MAX_FREQUENCY
    return np.where(nearly_certain, np.maximum(exponent, MIN_ESCAPE_EXPONENT), exponent)


def _escape_range(
    code: Int32[np.ndarray, "rows columns"], span: int, escapes: int
) -> tuple[int, int]:
    """Return (escape_low, escape_width): the least escaped integer, and the bits of the others."""
    if not escapes:
        return 0, 0
    escaped = code[(code < -span) | (code > span)]
    low = int(escaped.min())
    return low, width_of(int(escaped.max()) - low)


def _class_bits(contexts: Contexts, share: float) -> float:
    """Return the bits of the classes of all rows and columns.

    The class of a column is a parameter fitted to the rows that were seen, so OVERFIT_BITS are
    added for each column and each further `share` of rows.
    """
    row, column = (_list_bits(classes) for classes in (contexts.row, contexts.column))
    fitted = len(contexts.column) if contexts.column_classes > 1 else 0
    return share * row + column + OVERFIT_BITS * fitted * max(0.0, share - 1)


def _list_bits(classes: UInt8[np.ndarray, " n"]) -> float:
    """Return the bits of some rows' or columns' classes, and of the classes' code lengths."""
    lengths = class_lengths(classes)
    if len(lengths) < 2:
        return 0.0
    coded = np.bincount(classes) @ (PRECISION - np.log2(class_frequencies(lengths)))
    return float(coded) + 8 * packed_bytes(WIDTH, len(lengths))

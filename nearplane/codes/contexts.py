"""Contexts: which integers of a matrix share a table of probabilities.

The spread of a row or a column is log₂ of the root mean square of its integers, after the other
axis was scaled to equal size (`spreads`). Rows of like spread form a class, and so do columns. The
context of an integer is the sum of its two classes: a larger sum means larger integers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int32, Int64, UInt8

from nearplane.codes.dense import width_of
from nearplane.rows import by_rows, cached_rows, in_parts

CLASSES = 32  # most classes of rows, and of columns
FINEST = 4  # classes to a factor of two in the root mean square; coarser classes merge 2, 4 or all
ROUNDING = 0.08  # added to every square: about 1/12, the variance of rounding to integers
PASSES = 3  # of alternating between rows and columns
WIDEST = 2**15 - 1  # largest span: 2 span + 1 symbols and the escape symbol are at most 2^16
PIECE = 2**18  # integers counted at once
MOST_KEPT = 2**20  # most integers whose squares are kept in memory: 8 MB
MOST_CELLS = 2**20  # of a histogram over row class, column class and symbol
MOST_LENGTHS = 2**18  # most symbols −span .. span in all contexts together
ESCAPE_BITS = 12  # about what an escape symbol costs, without the escaped integer
SYMBOL_BITS = 2  # about what one more unit of span costs in table bits and time


@dataclass(frozen=True)
class Contexts:
    """The classes of all rows and columns; integer (i, j) is in context row[i] + column[j]."""

    row: UInt8[np.ndarray, " rows"]
    column: UInt8[np.ndarray, " columns"]

    @property
    def row_classes(self) -> int:
        return int(self.row.max()) + 1

    @property
    def column_classes(self) -> int:
        return int(self.column.max()) + 1

    @property
    def count(self) -> int:
        """The number of contexts, some of which may be empty."""
        return self.row_classes + self.column_classes - 1


def choose_span(code: Int32[np.ndarray, "rows columns"]) -> int:
    """Return span: integers −span .. span get symbols, all others use the escape symbol."""
    flat, sizes = code.reshape(-1), np.zeros(WIDEST + 2, np.int64)
    parts = in_parts(lambda some: _sizes(flat[some]), len(flat), PIECE)
    for part, _ in parts:
        sizes[: len(part)] += part.numpy()
    outside = len(flat) - np.cumsum(sizes)
    ends = torch.cat([ends for _, ends in parts])
    width = width_of(int(ends.max()) - int(ends.min()))
    cost = outside[:-1] * (ESCAPE_BITS + width) + SYMBOL_BITS * np.arange(WIDEST + 1)
    return max(1, int(cost.argmin()))


def _sizes(flat: Int32[np.ndarray, " count"]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how often each |integer| occurs, and the least and the largest integer."""
    ends = [int(flat.min()), int(flat.max())]
    low, high = (max(-WIDEST - 1, min(end, WIDEST + 1)) for end in ends)
    counts = np.zeros(high - low + 1, np.int64)
    for at in range(0, len(flat), PIECE):
        piece = flat[at : at + PIECE]
        clipped = piece if [low, high] == ends else np.clip(piece, low, high)
        counts += np.bincount(clipped - low, minlength=len(counts))
    sizes = np.zeros(max(-low, high) + 1, np.int64)
    np.add.at(sizes, np.abs(np.arange(low, high + 1)), counts)
    return torch.from_numpy(sizes), torch.tensor(ends, device="cpu")


def spreads(
    code: Int32[np.ndarray, "rows columns"], span: int = WIDEST
) -> tuple[Float64[np.ndarray, " rows"], Float64[np.ndarray, " columns"]]:
    """Return the spreads a of rows and b of columns, so that z(i, j)² ≈ 4^(a(i) + b(j)) on average.

    They are computed by alternating between

    a(i) = ½ log₂ mean_j z(i, j)² 4^(−b(j)),  b(j) = ½ log₂ mean_i z(i, j)² 4^(−a(i))

    where integers beyond ±span count as ±(span + 1).
    """
    row, column = np.zeros(code.shape[0]), np.zeros(code.shape[1])
    pieces = row_pieces(*code.shape)

    def squares(rows: slice) -> Float64[np.ndarray, "some columns"]:
        return _squares(_clipped(code[rows], span))

    squares_of = cached_rows(squares, len(code)) if code.size <= MOST_KEPT else squares
    for _ in range(PASSES):
        row, totals = _rows_spreads(squares_of, pieces, column)
        total = np.zeros(code.shape[1])
        for each in totals:
            total += each
        column = _half_log(total / len(row))
    return row, column


def _rows_spreads(
    squares: Callable[[slice], np.ndarray],
    pieces: list[slice],
    column: Float64[np.ndarray, " columns"],
) -> tuple[Float64[np.ndarray, " rows"], Float64[np.ndarray, "pieces columns"]]:
    """Return a(i), and for every piece of rows the sum over its rows of z(i, j)² 4^(−a(i))."""
    unit = np.exp2(-2 * column)

    def found(some: slice) -> tuple[torch.Tensor, torch.Tensor]:
        row, total = [], []
        for piece in pieces[some]:
            square = squares(piece)
            row.append(_half_log(square @ unit / len(column)))
            total.append(np.exp2(-2 * row[-1]) @ square)
        return torch.from_numpy(np.concatenate(row)), torch.from_numpy(np.stack(total))

    row, total = by_rows(found, len(pieces), 1)
    return row.numpy(), total.numpy()


def row_pieces(rows: int, columns: int) -> list[slice]:
    """Return slices of rows with about PIECE integers each.

    64-bit copies of a whole matrix would take gigabytes.
    """
    size = max(1, PIECE // columns)
    return [slice(at, at + size) for at in range(0, rows, size)]


def _clipped(
    code: Int32[np.ndarray, "rows columns"], span: int
) -> Int32[np.ndarray, "rows columns"]:
    """Return the integers clipped to −span − 1 .. span + 1."""
    if code.size and -span - 1 <= code.min() and code.max() <= span + 1:
        return code
    return np.clip(code, -span - 1, span + 1)


def _squares(code: Int32[np.ndarray, "rows columns"]) -> Float64[np.ndarray, "rows columns"]:
    # float32 sums depend on the number of threads, by enough to change a class
    return np.square(code, dtype=np.float64) + ROUNDING


def _half_log(mean: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Return log₂ of the root of mean squares."""
    return np.log2(mean) / 2


@dataclass(frozen=True)
class JointHistogram:
    """A histogram of symbols by the class of the row and the class of the column.

    Symbols are −span .. span and the escape symbol.
    """

    contexts: Contexts
    counts: Int64[np.ndarray, "row_classes column_classes symbols"]

    def coarser(self, by_row: int, by_column: int) -> "JointHistogram":
        """Return the histogram after merging so many neighbouring classes into one."""
        row, column = self.contexts.row // by_row, self.contexts.column // by_column
        counts = np.add.reduceat(self.counts, np.arange(0, len(self.counts), by_row), axis=0)
        at = np.arange(0, counts.shape[1], by_column)
        return JointHistogram(Contexts(row, column), np.add.reduceat(counts, at, axis=1))

    def by_context(self) -> Int64[np.ndarray, "contexts symbols"]:
        """Return the histogram of every context: counts of pairs of classes with equal sums."""
        rows, columns, symbols = self.counts.shape
        result = np.zeros((rows + columns - 1, symbols), np.int64)
        for k, part in enumerate(self.counts):
            result[k : k + columns] += part
        return result


def joint_counts(code: Int32[np.ndarray, "rows columns"], span: int, split: bool) -> JointHistogram:
    """Return the histogram over the finest classes that the limits of the format allow.

    - `split`: False: all rows are one class, and all columns.
    """
    row, column = np.zeros(code.shape[0], np.uint8), np.zeros(code.shape[1], np.uint8)
    if split:
        row, column = (_classes(x) for x in spreads(code, span))
    contexts = Contexts(row, column)
    for joined in (2, 4, 8, 16, CLASSES):
        if not _too_many(contexts, span):
            break
        contexts = Contexts(row // joined, column // joined)
    return JointHistogram(contexts, _count(code, span, contexts))


def candidates(finest: JointHistogram) -> Iterator[JointHistogram]:
    """Yield coarser classes of rows, of columns and of both; one context for all comes first."""
    rows, columns = finest.contexts.row_classes, finest.contexts.column_classes
    yield finest.coarser(CLASSES, CLASSES)
    for step in (1, 2, FINEST):
        if rows > step:
            yield finest.coarser(step, CLASSES)
        if columns > step:
            yield finest.coarser(CLASSES, step)
        if rows > step and columns > step:
            yield finest.coarser(step, step)


def _too_many(contexts: Contexts, span: int) -> bool:
    """ "contexts · (2 span + 1) MUST NOT exceed 2^18"; nor may the histogram be too large."""
    cells = contexts.row_classes * contexts.column_classes * (2 * span + 3)
    return contexts.count * (2 * span + 1) > MOST_LENGTHS or cells > MOST_CELLS


def _classes(spread: Float64[np.ndarray, " n"]) -> UInt8[np.ndarray, " n"]:
    """Return round(FINEST · spread), clipped to CLASSES values around the median, from 0 up."""
    level = np.rint(FINEST * spread).astype(np.int64)
    lowest = int(np.median(level)) - CLASSES // 2
    level = level.clip(lowest, lowest + CLASSES - 1)
    return (level - level.min()).astype(np.uint8)


def _count(
    code: Int32[np.ndarray, "rows columns"], span: int, contexts: Contexts
) -> Int64[np.ndarray, "row_classes column_classes symbols"]:
    shape = contexts.row_classes, contexts.column_classes, 2 * span + 3
    row = contexts.row.astype(np.int64) * (shape[1] * shape[2]) + span + 1
    column = contexts.column.astype(np.int64) * shape[2]
    pieces = row_pieces(*code.shape)

    def counted(some: slice) -> tuple[torch.Tensor]:
        counts = np.zeros(shape[0] * shape[1] * shape[2], np.int64)
        for piece in pieces[some]:
            cell = _clipped(code[piece], span) + row[piece, None]
            cell += column
            counts += np.bincount(cell.reshape(-1), minlength=len(counts))
        return (torch.from_numpy(counts),)

    first, *others = (part.numpy() for (part,) in in_parts(counted, len(pieces), 1))
    counts = first.reshape(shape)
    for part in others:
        counts += part.reshape(shape)
    # −span − 1 and span + 1 stand for all integers beyond ±span: both are the escape symbol
    counts[:, :, -1] += counts[:, :, 0]
    return counts[:, :, 1:]

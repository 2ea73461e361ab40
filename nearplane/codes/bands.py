"""Symbols <-> rANS bit streams (docs/formats/rans.md).

A band is a block of neighbouring rows with a bit stream of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from nearplane.codes.ans_coder import Words, coder_of, model_of
from nearplane.codes.contexts import Contexts
from nearplane.codes.corrupt import CorruptError, require
from nearplane.op import Op

FIRST_STATE = np.array([0, 1], np.uint32)  # 2^32 as two words, the state in which a coder begins


@dataclass(frozen=True)
class Frequencies:
    """Everything that a decoder must know of the streams. Each row of frequencies adds up to 2^24.

    - `row`, `column`: frequencies of the classes of rows and of columns. Classes are coded only
      where there is more than one.
    - `table`: which table each context uses.
    - `symbol`: the frequencies of the symbols in each table.
    """

    row: Int64[np.ndarray, " row_classes"]
    column: Int64[np.ndarray, " column_classes"]
    table: Int64[np.ndarray, " contexts"]
    symbol: Int64[np.ndarray, "tables symbols"]


@Op
def encode_bands(
    symbols: Int32[np.ndarray, "some_rows columns"],
    contexts: Contexts,
    frequencies: Frequencies,
    bands: list[slice],
) -> list[Words]:
    """Return the streams of some neighbouring bands.

    - `symbols`: those of the rows in these bands only.
    - `contexts`, `bands`: row classes and slices of rows, both counted in the whole matrix.

    The stream of the band that begins at row 0 begins with the classes of all rows and columns.
    """
    models, streams = [model_of(f) for f in frequencies.symbol], []
    for band in bands:
        coder, row = coder_of(FIRST_STATE), contexts.row[band]
        some = symbols[band.start - bands[0].start :][: len(row)]
        placed = some.take(_order(row), 0).take(_order(contexts.column), 1)
        # rANS is a stack: what is encoded last is decoded first
        for table, rows, columns in reversed(
            list(_blocks(row, contexts.column, frequencies.table))
        ):
            block = placed[rows, columns].reshape(-1)
            coder.encode_reverse(block, models[table])
        if band.start == 0:
            _encode_classes_(coder, contexts.column, frequencies.column)
            _encode_classes_(coder, contexts.row, frequencies.row)
        streams.append(coder.get_compressed())
    return streams


@Op
def decode_bands(
    streams: list[Words], shape: tuple[int, int], frequencies: Frequencies
) -> Int32[np.ndarray, "rows columns"]:
    """Return the symbols; CorruptError unless every stream ends in the state 2^32."""
    models, result = [model_of(f) for f in frequencies.symbol], np.empty(shape, np.int32)
    coder = _coder(streams[0])
    row = _decode_classes(coder, shape[0], frequencies.row)
    column = _decode_classes(coder, shape[1], frequencies.column)
    back = _order(_order(column))
    for k, part in enumerate(band_slices(shape[0], len(streams))):
        coder = _coder(streams[k]) if k else coder
        placed = np.empty((len(row[part]), shape[1]), np.int32)
        for table, rows, columns in _blocks(row[part], column, frequencies.table):
            block = placed[rows, columns]
            block[:] = coder.decode(models[table], block.size).reshape(block.shape)
        # "the state MUST be 2^32, and no word may be left"
        require(coder.pos() == (0, 1 << 32), "a stream does not end with its integers")
        result[part] = placed.take(_order(_order(row[part])), 0).take(back, 1)
    return result


def band_slices(rows: int, bands: int) -> list[slice]:
    """ "Every band but the last has ⌈rows / bands⌉ rows." """
    size = -(-rows // bands)
    return [slice(at, at + size) for at in range(0, rows, size)]


def _blocks(
    row: UInt8[np.ndarray, " some_rows"],
    column: UInt8[np.ndarray, " columns"],
    table: Int64[np.ndarray, " contexts"],
) -> Iterator[tuple[int, slice, slice]]:
    """Yield (table, rows, columns) of each pair of classes; slices of rows and columns by class.

    "By row class, then by column class; row-major within a pair."
    """
    rows, columns = _class_slices(row), _class_slices(column)
    for i, some_rows in rows:
        for j, some_columns in columns:
            yield int(table[i + j]), some_rows, some_columns


def _class_slices(classes: UInt8[np.ndarray, " n"]) -> list[tuple[int, slice]]:
    """Return each class that occurs, and the slice that it has when rows are sorted by class."""
    counts = np.bincount(classes)
    ends = np.cumsum(counts)
    present = np.flatnonzero(counts).tolist()
    return [(k, slice(int(ends[k] - counts[k]), int(ends[k]))) for k in present]


def _order(classes: np.ndarray) -> Int64[np.ndarray, " n"]:
    """Return the permutation that sorts by class; of a permutation, its inverse."""
    return np.argsort(classes, kind="stable")


def _coder(words: Words) -> Any:
    try:
        return coder_of(words)
    except ValueError as error:
        raise CorruptError(f"a stream cannot be read: {error}") from error


def _encode_classes_(
    coder: Any,
    classes: UInt8[np.ndarray, " n"],
    frequency: Int64[np.ndarray, " classes"],
) -> None:
    if len(frequency) > 1:
        coder.encode_reverse(classes.astype(np.int32), model_of(frequency))


def _decode_classes(
    coder: Any, count: int, frequency: Int64[np.ndarray, " classes"]
) -> UInt8[np.ndarray, " count"]:
    if len(frequency) == 1:
        return np.zeros(count, np.uint8)
    return coder.decode(model_of(frequency), count).astype(np.uint8)

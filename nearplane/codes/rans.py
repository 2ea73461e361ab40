"""The code `Rans`: range asymmetric numeral systems, rANS [Duda13] (docs/formats/rans.md)."""

import math
import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int32, Int64, UInt8, UInt32

from nearplane.codes.bands import Frequencies, Words, band_slices, decode_bands, encode_bands
from nearplane.codes.classes import WIDTH, class_frequencies, class_lengths
from nearplane.codes.contexts import CLASSES, MOST_LENGTHS, WIDEST, Contexts
from nearplane.codes.corrupt import require
from nearplane.codes.dense import INT32_MAX, pack_bits, packed_bytes, unpack_bits
from nearplane.codes.fitting import BAND, BAND_BYTES, Tables, band_count, fit
from nearplane.codes.reader import Reader
from nearplane.codes.stored_tables import check_frequencies, read_tables
from nearplane.rows import by_rows

HEADER = struct.Struct("<HBBBHI")  # span, form, row_classes, column_classes, bands, escape_count
ESCAPED = struct.Struct("<iB")  # escape_low, escape_width
WORD = 4  # bytes
LEAST_BAND = 2**16  # integers
# a coded integer costs at most 2^−8 log₂ e bits more than −log₂ p: one byte in so many integers
INTEGERS_PER_LOST_BYTE = 1400


@dataclass(frozen=True)
class Rans:
    """A code that spends about −log₂ p bits on an integer of probability p.

    Rows and columns are classed by how large their integers are (contexts.py), and the table of
    probabilities depends on both classes. The rows are split into bands, each a bit stream of its
    own, so that they can be coded in parallel (bands.py).

    - `contexts`: False: all integers share one table.
    - `tables`: what `fit` returned for the integers to be encoded; None: `encode` calls `fit`.
    """

    name: ClassVar[str] = "rans"
    tag: ClassVar[int] = 3
    most_per_byte: ClassVar[int] = 512

    contexts: bool = True
    tables: Tables | None = None

    def encode(self, integers: Int32[np.ndarray, "rows columns"]) -> bytes:
        """Return the header, the tables, the escaped integers and one stream for each band."""
        if not integers.size:
            return b""
        tables = self.tables or fit(integers, contexts=self.contexts)
        contexts, stored, span = tables.contexts, tables.stored, tables.span
        row, column = class_lengths(contexts.row), class_lengths(contexts.column)
        frequencies = _frequencies(row, column, stored.table, tables.frequency)
        streams, escaped = _encoded(integers, span, contexts, frequencies)
        head = span, stored.form, len(row), len(column), len(streams), len(escaped)
        sizes = np.array([len(words) for words in streams], "<u4").tobytes()
        lists = [pack_bits(x, WIDTH) for x in (row, column) if len(x) > 1]
        parts = HEADER.pack(*head), sizes, *lists, stored.to_bytes(), _pack_escaped(escaped, tables)
        return b"".join(parts) + b"".join(words.astype("<u4").tobytes() for words in streams)

    def decode(
        self, buffer: bytes | memoryview, rows: int, columns: int
    ) -> tuple[Int32[np.ndarray, "rows columns"], int]:
        """Return rows · columns integers and the bytes they took."""
        if not rows * columns:
            return np.zeros((rows, columns), np.int32), 0
        reader = Reader(buffer)
        # "rows · columns MUST NOT exceed 512 times the bytes of the code"
        few = rows * columns <= self.most_per_byte * reader.left
        require(few, f"{rows} x {columns} integers cannot be in {reader.left} bytes")
        header = _read_header(reader, rows, columns)
        sizes = np.frombuffer(reader.take(WORD * header.bands, "sizes of streams"), "<u4").tolist()
        left = WORD * sum(sizes) <= reader.left
        require(left, f"streams of {sum(sizes)} words are cut short")
        row, column = (_read_classes(reader, n) for n in header.classes)
        stored = read_tables(reader, header.span, header.contexts, header.form)
        frequency = stored.frequencies()
        check_frequencies(frequency)
        escaped = _read_escaped(reader, header.escape_count)
        streams = [_read_words(reader, size) for size in sizes]
        frequencies = _frequencies(row, column, stored.table, frequency)
        integers = decode_bands(streams, (rows, columns), frequencies)
        _to_integers_(integers, header.span, escaped)
        return integers, reader.at

    def bound(
        self, values: Int64[np.ndarray, " distinct"], counts: Int64[np.ndarray, " distinct"]
    ) -> int:
        """Return the size with one table, plus the most that rounding in the coder can add."""
        total = int(counts.sum())
        if not total:
            return 0
        row = np.repeat(values.astype(np.int32), counts)[None]
        lost = total / INTEGERS_PER_LOST_BYTE + (BAND_BYTES + WORD) * (1 + total / BAND)
        return math.ceil(fit(row, contexts=False).estimated_bytes() + lost)


def _encoded(
    integers: Int32[np.ndarray, "rows columns"],
    span: int,
    contexts: Contexts,
    frequencies: Frequencies,
) -> tuple[list[Words], Int32[np.ndarray, " escapes"]]:
    """Return the streams of the bands, and the integers beyond ±span in row-major order."""
    bands = band_slices(len(integers), band_count(*integers.shape))

    def some_bands(some: slice) -> tuple[torch.Tensor, ...]:
        rows = slice(bands[some][0].start, bands[some][-1].stop)
        symbols = _symbols(integers[rows], span)
        streams = encode_bands(symbols, contexts, frequencies, bands[some])
        sizes = np.array([len(words) for words in streams])
        words = np.concatenate(streams).view(np.int32)
        made = sizes, words, integers[rows][symbols == 2 * span + 1]
        return tuple(map(torch.from_numpy, made))

    sizes, words, escaped = by_rows(some_bands, len(bands), 1)
    ends = np.cumsum(sizes.numpy())[:-1]
    return np.split(words.numpy().view(np.uint32), ends), escaped.numpy()


@dataclass(frozen=True)
class Header:
    """The fields of the header in the order in which they are stored."""

    span: int
    form: int
    row_classes: int
    column_classes: int
    bands: int
    escape_count: int

    @property
    def classes(self) -> tuple[int, int]:
        return self.row_classes, self.column_classes

    @property
    def contexts(self) -> int:
        return self.row_classes + self.column_classes - 1


def _read_header(reader: Reader, rows: int, columns: int) -> Header:
    h = Header(*reader.fields(HEADER, "rans header"))
    # "span MUST be in 1 .. 2^15 - 1"
    require(1 <= h.span <= WIDEST, f"span {h.span} is not in 1 .. {WIDEST}")
    # "row_classes and column_classes MUST be in 1 .. 32"
    classes = all(1 <= n <= CLASSES for n in h.classes)
    require(classes, f"{h.row_classes} and {h.column_classes} classes are not in 1 .. {CLASSES}")
    # "contexts * (2 span + 1) MUST NOT exceed 2^18"
    few = h.contexts * (2 * h.span + 1) <= MOST_LENGTHS
    require(few, f"{h.contexts} contexts of span {h.span} are too many")
    count = rows * columns
    # "bands MUST be in 1 .. 1 + ⌊rows · columns / 2^16⌋, and no band MAY be empty"
    whole = 1 <= h.bands <= 1 + count // LEAST_BAND and (h.bands - 1) * -(-rows // h.bands) < rows
    require(whole, f"{rows} x {columns} integers do not make {h.bands} bands")
    require(h.escape_count <= count, f"{h.escape_count} of {count} integers escape")
    return h


def _frequencies(
    row: np.ndarray, column: np.ndarray, table: np.ndarray, symbol: np.ndarray
) -> Frequencies:
    return Frequencies(class_frequencies(row), class_frequencies(column), table, symbol)


def _read_classes(reader: Reader, classes: int) -> UInt8[np.ndarray, " classes"]:
    """ "A lonely class has no length." """
    if classes == 1:
        return np.zeros(1, np.uint8)
    packed = reader.take(packed_bytes(WIDTH, classes), "lengths of classes")
    return unpack_bits(packed, WIDTH, classes)


def _symbols(
    integers: Int32[np.ndarray, "rows columns"], span: int
) -> Int32[np.ndarray, "rows columns"]:
    """Return symbol z + span for an integer |z| <= span, and the escape symbol 2 span + 1 else."""
    # the unsigned sum wraps around, so that integers below −span become large too
    symbols = np.ascontiguousarray(integers).view(np.uint32) + np.uint32(span)
    return np.minimum(symbols, np.uint32(2 * span + 1)).view(np.int32)


def _to_integers_(
    symbols: Int32[np.ndarray, "rows columns"], span: int, escaped: Int32[np.ndarray, " escapes"]
) -> None:
    """ "The k-th escape symbol in row-major order stands for the k-th escaped integer." """
    flat = symbols.reshape(-1)
    places = np.flatnonzero(flat == 2 * span + 1)
    alike = len(places) == len(escaped)
    require(alike, f"{len(places)} escapes for {len(escaped)} escaped integers")
    flat -= span
    flat[places] = escaped


def _pack_escaped(escaped: Int32[np.ndarray, " escapes"], tables: Tables) -> bytes:
    """ "Without escaped integers there are no bytes." """
    if not len(escaped):
        return b""
    above = escaped.astype(np.int64) - tables.escape_low
    width = tables.escape_width
    return ESCAPED.pack(tables.escape_low, width) + pack_bits(above, width)


def _read_escaped(reader: Reader, count: int) -> Int32[np.ndarray, " escapes"]:
    if not count:
        return np.zeros(0, np.int32)
    low, width = reader.fields(ESCAPED, "escaped integers")
    require(width <= 32, f"escape_width {width} exceeds 32")
    packed = reader.take(packed_bytes(width, count), "escaped integers")
    escaped = unpack_bits(packed, width, count).astype(np.int64) + low
    # "escape_low + an element MUST NOT exceed 2^31 - 1"
    require(int(escaped.max()) <= INT32_MAX, "an escaped integer exceeds int32")
    return escaped.astype(np.int32)


def _read_words(reader: Reader, size: int) -> UInt32[np.ndarray, " size"]:
    return np.frombuffer(reader.take(WORD * size, "a stream"), "<u4").astype(np.uint32)

"""The tables of symbol frequencies of all contexts, and their bytes (docs/formats/rans.md).

A table is stored in one of two forms: "shaped", as the few parameters of a curve (shapes.py), or
"listed", as the code length of every symbol.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Integer, UInt8

from nearplane.codes.corrupt import require
from nearplane.codes.dense import pack_bits, packed_bytes, unpack_bits, width_of
from nearplane.codes.frequencies import PRECISION, TOTAL, UNIT, frequencies
from nearplane.codes.reader import Reader
from nearplane.codes.shapes import Shapes

SHAPED, LISTED = 0, 1
SHAPED_LISTS = 5  # numbers stored for a shaped table: four parameters and the escape exponent
LISTED_WIDTH = 8  # bits of a listed length
LONGEST = 2**LISTED_WIDTH - 1
MAX_FREQUENCY = TOTAL - (1 << 18)  # so that every symbol costs 0.022 bits or more


@dataclass(frozen=True)
class StoredTables:
    """One table or more of the symbols −span .. span and the escape symbol.

    - `table`: which table each context uses: 0 first, then the same or the next one.
    - `escape`: the escape symbol's frequency is 2^escape.
    - `lengths`: in sixteenths of a bit; the parameters of shaped tables, or the lengths listed.
    """

    span: int
    table: Int64[np.ndarray, " contexts"]
    escape: Int64[np.ndarray, " tables"]
    lengths: Shapes | UInt8[np.ndarray, "tables symbols"]

    @property
    def form(self) -> int:
        return SHAPED if isinstance(self.lengths, Shapes) else LISTED

    def frequencies(self) -> Int64[np.ndarray, "tables symbols_and_escape"]:
        """Return the frequency of every symbol; they add up to 2^24 in each table."""
        if isinstance(self.lengths, Shapes):
            half = self.lengths.lengths(self.span)
            lengths = np.concatenate([half[:, :0:-1], half], axis=1)
        else:
            lengths = self.lengths.astype(np.int64)
        escape = 1 << self.escape
        return np.concatenate([frequencies(lengths, TOTAL - escape), escape[:, None]], axis=1)

    def to_bytes(self) -> bytes:
        """Return the bytes: which contexts begin a new table, then the numbers of all tables."""
        begins = pack_bits(np.diff(self.table), 1)
        if not isinstance(self.lengths, Shapes):
            listed = pack_bits(self.lengths.reshape(-1), LISTED_WIDTH)
            return begins + _numbers([self.escape]) + listed
        s = self.lengths
        return begins + _numbers(
            [self.escape, s.scale, s.square, _zigzag(s.linear), _zigzag(s.zero)]
        )


def read_tables(reader: Reader, span: int, contexts: int, form: int) -> StoredTables:
    """Read the tables; CorruptError if they break a rule of the format."""
    require(form in (SHAPED, LISTED), f"tables of form {form} are unknown")
    packed = reader.take(packed_bytes(1, contexts - 1), "contexts' tables")
    table = np.zeros(contexts, np.int64)
    np.cumsum(unpack_bits(packed, 1, contexts - 1), out=table[1:])
    tables = int(table[-1]) + 1
    if form == LISTED:
        (escape,) = _read_numbers(reader, 1, tables)
        count = tables * (2 * span + 1)
        packed = reader.take(packed_bytes(LISTED_WIDTH, count), "listed lengths")
        lengths = unpack_bits(packed, LISTED_WIDTH, count).reshape(tables, -1)
    else:
        escape, scale, square, linear, zero = _read_numbers(reader, SHAPED_LISTS, tables)
        # "scale MUST NOT exceed 15"
        require(int(scale.max()) < UNIT, f"a table's scale {scale.max()} exceeds 15")
        lengths = Shapes(scale, square, _from_zigzag(linear), _from_zigzag(zero))
    # "the escape symbol's exponent MUST NOT exceed 23"
    require(int(escape.max()) < PRECISION, f"an escape symbol's frequency is 2^{escape.max()}")
    return StoredTables(span, table, escape, lengths)


def check_frequencies(frequency: Int64[np.ndarray, "tables symbols"]) -> None:
    """ "No symbol's frequency MAY exceed 2^24 − 2^18." """
    likeliest = int(frequency.max())
    require(likeliest <= MAX_FREQUENCY, f"a symbol's frequency {likeliest} exceeds {MAX_FREQUENCY}")


def _numbers(lists: list[Int64[np.ndarray, " tables"]]) -> bytes:
    """Return the bytes of some lists: the bit width of each, then each packed in its width."""
    widths = [width_of(int(x.max())) for x in lists]
    packed = [pack_bits(x, width) for x, width in zip(lists, widths, strict=True)]
    return pack_bits(np.array(widths), 4) + b"".join(packed)


def _read_numbers(reader: Reader, lists: int, count: int) -> list[Int64[np.ndarray, " count"]]:
    widths = unpack_bits(reader.take(packed_bytes(4, lists), "widths"), 4, lists).tolist()
    parts = [reader.take(packed_bytes(width, count), "tables") for width in widths]
    both = zip(parts, widths, strict=True)
    return [unpack_bits(part, width, count).astype(np.int64) for part, width in both]


def _zigzag(numbers: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Return the zigzag code of signed numbers: 2 v for v >= 0 and −2 v − 1 for v < 0."""
    return np.where(numbers < 0, -2 * numbers - 1, 2 * numbers)


def _from_zigzag(numbers: Integer[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """ "v is u / 2 for even u and −(u + 1) / 2 for odd u" """
    return np.where(numbers % 2, -(numbers + 1) // 2, numbers // 2)

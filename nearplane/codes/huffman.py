"""The code `Huffman`: canonical Huffman codes (docs/formats/huffman.md)."""

import math
import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int32, Int64, UInt8

from nearplane.codes.alphabet import Alphabet, choose_alphabet, histogram, symbols_of
from nearplane.codes.canonical import LONGEST, check_complete
from nearplane.codes.corrupt import require
from nearplane.codes.dense import INT32_MAX, pack_bits, packed_bytes, unpack_bits, width_of
from nearplane.codes.lanes import LANE, decode_lanes, encode_lanes, lane_counts
from nearplane.codes.lengths import code_lengths
from nearplane.codes.reader import Reader
from nearplane.rows import by_rows

# low, escape_low, escape_count, stream_bytes, span, lane_minimum, escape_width, lane_width, zero
HEADER = struct.Struct("<iiIIHHBBH")
SHARED_LANES = 64  # the fewest lanes that are worth encoding in a process of their own
LANE_WIDTH = 12  # a lane has at most 2048 * 15 / 8 = 3840 bytes


@dataclass(frozen=True)
class Huffman:
    """A code that gives frequent integers short code words and stores rare ones apart.

    No integer is clipped.

    - `limit`: the longest code word in bits.
    """

    name: ClassVar[str] = "huffman"
    tag: ClassVar[int] = 1
    most_per_byte: ClassVar[int] = 8

    limit: int = 12

    def __post_init__(self):
        if not 1 <= self.limit <= LONGEST:
            raise ValueError(f"limit={self.limit} is not in 1 .. {LONGEST}")

    def encode(self, integers: Int32[np.ndarray, "rows columns"]) -> bytes:
        """Return header, code lengths, lane sizes, escaped integers and the lanes' bit streams."""
        if not integers.size:
            return b""
        integers = integers.reshape(-1)
        alphabet = choose_alphabet(*histogram(integers), self.limit)
        lengths = code_lengths(alphabet.counts, self.limit)
        stream, sizes, escaped = _encoded(integers, alphabet, lengths)
        minimum, differences, width = _lane_fields(sizes)
        head = _header(alphabet, len(stream), minimum, width)
        aside = pack_bits(escaped.astype(np.int64) - alphabet.escape_low, alphabet.escape_width)
        parts = head, pack_bits(lengths, 4), differences, aside
        return b"".join(parts) + stream.tobytes()

    def decode(
        self, buffer: bytes | memoryview, rows: int, columns: int
    ) -> tuple[Int32[np.ndarray, "rows columns"], int]:
        """Return rows · columns integers and the bytes they took."""
        count = rows * columns
        if not count:
            return np.zeros((rows, columns), np.int32), 0
        reader = Reader(buffer)
        header = _read_header(reader, count)
        lengths = _read_lengths(reader, header)
        sizes = _read_sizes(reader, header, lane_counts(count), lengths)
        escaped = _read_escaped(reader, header)
        stream = np.frombuffer(reader.take(header.stream_bytes, "lanes"), np.uint8)
        integers = decode_lanes(stream, sizes, count, lengths, header.low)
        if lengths[-1]:
            _put_escaped_(integers, header, escaped)
        return integers.reshape(rows, columns), reader.at

    def bound(
        self, values: Int64[np.ndarray, " distinct"], counts: Int64[np.ndarray, " distinct"]
    ) -> int:
        """Return the size if every lane had 7 bits of padding and LANE_WIDTH bits for its size."""
        if not len(values):
            return 0
        lanes = -(-int(counts.sum()) // LANE)
        bits = choose_alphabet(values, counts, self.limit).bits
        return HEADER.size + packed_bytes(LANE_WIDTH, lanes - 1) + (bits + 7 * lanes + 7) // 8

    def predict(
        self, values: Int64[np.ndarray, " distinct"], counts: Int64[np.ndarray, " distinct"]
    ) -> int:
        """Estimate the size in bytes.

        Only two parts are estimated: the padding of lanes, 3.5 bits each on average, and how many
        bits store a lane's size, from the variance of a sum of independent code lengths. Rows of
        unequal scale may need a bit or two more a lane.
        """
        alphabet = choose_alphabet(values, counts, self.limit)
        total = int(counts.sum())
        lanes = -(-total // LANE)
        width = _likely_width(alphabet, self.limit, lanes)
        bits = alphabet.bits + 3.5 * lanes
        return HEADER.size + packed_bytes(width, lanes - 1) + math.ceil(bits / 8)


def _encoded(
    integers: Int32[np.ndarray, " count"], alphabet: Alphabet, lengths: UInt8[np.ndarray, " span"]
) -> tuple[UInt8[np.ndarray, " bytes"], Int64[np.ndarray, " lanes"], Int32[np.ndarray, " escapes"]]:
    """Return the bytes of all lanes, the bytes of each, and the escaped integers in order."""

    def some_lanes(some: slice) -> tuple[torch.Tensor, ...]:
        symbols = symbols_of(integers[some], alphabet)
        made = *encode_lanes(symbols, lengths), integers[some][symbols == len(lengths) - 1]
        return tuple(map(torch.from_numpy, made))

    stream, sizes, escaped = by_rows(some_lanes, len(integers), SHARED_LANES * LANE)
    return stream.numpy(), sizes.numpy(), escaped.numpy()


@dataclass(frozen=True)
class Header:
    """The fields of the header in the order in which they are stored."""

    low: int
    escape_low: int
    escape_count: int
    stream_bytes: int
    span: int
    lane_minimum: int
    escape_width: int
    lane_width: int
    zero: int


def _header(alphabet: Alphabet, stream_bytes: int, minimum: int, lane_width: int) -> bytes:
    if stream_bytes >= 1 << 32:
        raise ValueError(f"{stream_bytes} bytes of code words do not fit in one 4 GiB stream")
    span = len(alphabet.counts) - 1
    aside = alphabet.escape_low, alphabet.escapes
    widths = alphabet.escape_width, lane_width, 0
    return HEADER.pack(alphabet.low, *aside, stream_bytes, span, minimum, *widths)


def _lane_fields(sizes: np.ndarray) -> tuple[int, bytes, int]:
    """ "Sizes of all lanes but the last are stored as lane_minimum + lane_width bits."""
    stored = sizes[:-1]
    if not len(stored):
        return 0, b"", 0
    minimum = int(stored.min())
    width = width_of(int(stored.max()) - minimum)
    return minimum, pack_bits(stored - minimum, width), width


def _read_header(reader: Reader, count: int) -> Header:
    h = Header(*reader.fields(HEADER, "huffman header"))
    # "count MUST NOT exceed 8 * stream_bytes": checked first, it limits what is allocated
    require(h.stream_bytes <= reader.left, f"lanes of {h.stream_bytes} bytes are cut short")
    require(count <= 8 * h.stream_bytes, f"{count} integers cannot be in {h.stream_bytes} bytes")
    require(h.escape_count <= count, f"{h.escape_count} of {count} integers escape")
    require(h.zero == 0, "the last two bytes of the huffman header are not zero")
    require(h.escape_width <= 32, f"escape_width {h.escape_width} exceeds 32")
    require(h.lane_width <= LANE_WIDTH, f"lane_width {h.lane_width} exceeds {LANE_WIDTH}")
    # "low + span - 1 MUST NOT exceed 2^31 - 1"
    require(h.low + h.span - 1 <= INT32_MAX, "the alphabet exceeds int32")
    return h


def _read_lengths(reader: Reader, header: Header) -> UInt8[np.ndarray, " span_plus_one"]:
    size = header.span + 1
    lengths = unpack_bits(reader.take(packed_bytes(4, size), "code lengths"), 4, size)
    check_complete(lengths)
    return lengths


def _read_sizes(
    reader: Reader, header: Header, counts: np.ndarray, lengths: np.ndarray
) -> Int64[np.ndarray, " lanes"]:
    """Read the sizes of lanes; CorruptError if one is impossible for its number of symbols."""
    stored, width = len(counts) - 1, header.lane_width
    packed = reader.take(packed_bytes(width, stored), "lane sizes")
    sizes = unpack_bits(packed, width, stored).astype(np.int64) + header.lane_minimum
    # "the last lane has what remains of stream_bytes"
    sizes = np.append(sizes, header.stream_bytes - sizes.sum())
    used = lengths[lengths > 0].astype(np.int64)
    fits = (8 * sizes >= counts * used.min()) & (8 * sizes < counts * used.max() + 8)
    require(bool(fits.all()), "a lane's size is impossible for its symbols")
    return sizes


def _read_escaped(reader: Reader, header: Header) -> Int32[np.ndarray, " escapes"]:
    width, count = header.escape_width, header.escape_count
    packed = reader.take(packed_bytes(width, count), "escaped integers")
    escaped = unpack_bits(packed, width, count).astype(np.int64) + header.escape_low
    # "escape_low + an element MUST NOT exceed 2^31 - 1"
    require(not count or int(escaped.max()) <= INT32_MAX, "an escaped integer exceeds int32")
    return escaped.astype(np.int32)


def _put_escaped_(integers: np.ndarray, header: Header, escaped: np.ndarray) -> None:
    """ "The k-th escape symbol stands for the k-th escaped integer."""
    # `decode_lanes` gave escape symbols the value low + span, which may have wrapped around int32
    mark = (header.low + header.span + 2**31) % 2**32 - 2**31
    places = np.flatnonzero(integers == np.int32(mark))
    require(
        len(places) == len(escaped), f"{len(places)} escapes for {len(escaped)} escaped integers"
    )
    integers[places] = escaped


def _likely_width(alphabet: Alphabet, limit: int, lanes: int) -> int:
    """Return the likely bits of a stored lane size, if code lengths were independent."""
    if lanes < 3:
        return 0
    lengths = code_lengths(alphabet.counts, limit).astype(np.float64)
    share = alphabet.counts / alphabet.counts.sum()
    variance = share @ lengths**2 - (share @ lengths) ** 2
    # the largest of n Gaussians is near sqrt(2 ln n) standard deviations
    spread = 2 * math.sqrt(2 * math.log(lanes - 1) * LANE * max(variance, 0.0)) / 8
    return width_of(round(spread))

"""Packing of integers of a fixed number of bits, and the code `Dense` (docs/formats/dense.md)."""

import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int32, Int64, Integer, UInt

from nearplane.codes.bitstream import place_fields, words_at
from nearplane.codes.corrupt import require
from nearplane.codes.reader import Reader

HEADER = struct.Struct("<iB")
INT32_MAX = 2**31 - 1


def packed_bytes(width: int, count: int) -> int:
    """Return the size of `count` elements of `width` bits: ⌈width · count / 8⌉."""
    return (width * count + 7) // 8


def signed_width(low: int, high: int) -> int:
    """Return bits of two's complement that suffice for the integers low .. high."""
    return max((-low - 1).bit_length(), high.bit_length()) + 1


def width_of(largest: int) -> int:
    """Return how many bits hold every integer of 0 .. `largest`."""
    return int(largest).bit_length()


def pack_bits(values: Integer[np.ndarray, " count"], width: int) -> bytes:
    """Return `values`, all in 0 .. 2^width − 1, as consecutive fields of `width` bits.

    "Bit k of element i is bit (i · width + k) mod 8 of byte ⌊(i · width + k) / 8⌋."
    """
    _check_width(width)
    if len(values) and (int(values.min()) < 0 or int(values.max()) >> width):
        raise ValueError(f"values of {values.min()} .. {values.max()} do not fit in {width=} bits")
    size = packed_bytes(width, len(values))
    if not size:
        return b""
    pack = _pack_narrow if width <= 8 else _pack_wide
    return pack(values, width)[:size].tobytes()


def unpack_bits(buffer: bytes | memoryview, width: int, count: int) -> UInt[np.ndarray, " count"]:
    """Return `count` elements of `width` bits: uint8 up to 8 bits, uint32 above.

    CorruptError unless `buffer` has exactly their bytes, and "Bits after the last element are
    zero."
    """
    _check_width(width)
    size = packed_bytes(width, count)
    require(len(buffer) == size, f"{count} x {width} bits take {size} bytes, not {len(buffer)}")
    spare = 8 * size - width * count
    require(not spare or buffer[-1] >> (8 - spare) == 0, "padding after packed bits is not zero")
    if not size:
        return np.zeros(count, np.uint8)
    unpack = _unpack_narrow if width <= 8 else _unpack_wide
    return unpack(np.frombuffer(buffer, np.uint8), width, count)


def _check_width(width: int) -> None:
    if not 0 <= width <= 32:
        raise ValueError(f"{width=} is not in 0 .. 32")


def _pack_narrow(values: np.ndarray, width: int) -> np.ndarray:
    """Pack elements of at most 8 bits.

    Eight elements, a byte each, are one 64-bit word. Three rounds of shifts move their bits
    together until the word's lowest 8 · width bits hold all of them.
    """
    octets = np.zeros(-(-len(values) // 8) * 8, np.uint8)
    octets[: len(values)] = values
    word = octets.view("<u8")
    # a slot of 8, 16, 32 bits holds 1, 2, 4 elements: each round joins two slots
    for slot in (8, 16, 32) if width < 8 else ():
        filled = width * slot // 8
        low = _mask(filled, 2 * slot)
        word = (word & low) | ((word >> np.uint64(slot - filled)) & (low << np.uint64(filled)))
    return word.view(np.uint8).reshape(-1, 8)[:, :width].reshape(-1)


def _unpack_narrow(packed: np.ndarray, width: int, count: int) -> np.ndarray:
    """Unpack elements of at most 8 bits: the rounds of `_pack_narrow` in reverse."""
    octets = np.zeros((-(-count // 8), 8), np.uint8)
    whole = len(packed) // width
    octets[:whole, :width] = packed[: whole * width].reshape(whole, width)
    octets[whole:, : len(packed) - whole * width] = packed[whole * width :]
    word = octets.reshape(-1).view("<u8")
    for slot in (32, 16, 8) if width < 8 else ():
        filled = width * slot // 8
        low = _mask(filled, 2 * slot)
        word = (word & low) | ((word & (low << np.uint64(filled))) << np.uint64(slot - filled))
    return word.view(np.uint8)[:count]


def _mask(ones: int, period: int) -> np.uint64:
    """Return a 64-bit word in which the lowest `ones` of every `period` bits are 1."""
    return np.uint64(sum(((1 << ones) - 1) << at for at in range(0, 64, period)))


def _pack_wide(values: np.ndarray, width: int) -> np.ndarray:
    place = np.arange(len(values)) * width
    return place_fields(values.astype(np.uint64), place, packed_bytes(width, len(values)))


def _unpack_wide(packed: np.ndarray, width: int, count: int) -> np.ndarray:
    bit = np.arange(count) * width
    word = words_at(packed)[bit >> 3] >> (bit & 7)
    return (word & ((1 << width) - 1)).astype(np.uint32)


@dataclass(frozen=True)
class Dense:
    """A code that stores every integer in the same number of bits.

    - `bits`: how many; None: the fewest that hold every integer of the matrix.
    """

    name: ClassVar[str] = "dense"
    tag: ClassVar[int] = 2
    most_per_byte: ClassVar[int] = 8

    bits: int | None = None

    def __post_init__(self):
        if self.bits is not None and not 1 <= self.bits <= 32:
            raise ValueError(f"bits={self.bits} is not in 1 .. 32")

    def encode(self, integers: Int32[np.ndarray, "rows columns"]) -> bytes:
        """Return the header (`low`, bits), then every integer − low in that many bits."""
        if not integers.size:
            return b""
        integers = integers.reshape(-1)
        low, bits = self._range(int(integers.min()), int(integers.max()))
        # unsigned differences wrap to the right result for the whole int32 range
        offset = integers.view(np.uint32) - np.uint32(low % 2**32)
        return HEADER.pack(low, bits) + pack_bits(offset, bits)

    def decode(
        self, buffer: bytes | memoryview, rows: int, columns: int
    ) -> tuple[Int32[np.ndarray, "rows columns"], int]:
        """Return rows · columns integers and the bytes they took."""
        count = rows * columns
        if not count:
            return np.zeros((rows, columns), np.int32), 0
        reader = Reader(buffer)
        low, bits = reader.fields(HEADER, "dense header")
        # "bits MUST be in 1 .. 32"
        require(1 <= bits <= 32, f"dense width {bits} is not in 1 .. 32")
        packed = reader.take(packed_bytes(bits, count), "dense integers")
        offset = unpack_bits(packed, bits, count)
        # "low + the largest element MUST NOT exceed 2^31 - 1"
        require(low + int(offset.max()) <= INT32_MAX, "a dense integer exceeds int32")
        return _shifted(offset, low).reshape(rows, columns), reader.at

    def bound(
        self, values: Int64[np.ndarray, " distinct"], counts: Int64[np.ndarray, " distinct"]
    ) -> int:
        """Return the exact size."""
        if not len(values):
            return 0
        _, bits = self._range(int(values.min()), int(values.max()))
        return HEADER.size + packed_bytes(bits, int(counts.sum()))

    def _range(self, smallest: int, largest: int) -> tuple[int, int]:
        """Return (low, bits) for integers smallest .. largest.

        `low` is −2^(bits − 1), as in two's complement, where that range holds all of them, since
        kernels read such codes more easily; else it is `smallest`.
        """
        bits = self.bits or max(1, width_of(largest - smallest))
        if (largest - smallest) >> bits:
            raise ValueError(f"integers {smallest} .. {largest} do not fit in {bits=}")
        low = -(1 << (bits - 1))
        return (low if low <= smallest and largest < -low else smallest), bits


def _shifted(offset: np.ndarray, low: int) -> np.ndarray:
    """Return offset + low as int32, modulo 2^32."""
    wide = offset.astype(np.uint32)
    wide += np.uint32(low % 2**32)
    return wide.view(np.int32)

"""A second decoder of docs/formats, written from the documents alone: one bit at a time, no numpy.

Nothing is imported from nearplane. It trusts its input; tests compare it with the fast decoder.
"""

import struct
import zlib


class Bits:
    """Bit b of the bytes is bit b mod 8 of byte b // 8."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def bit(self) -> int:
        value = self.data[self.at // 8] >> (self.at % 8) & 1
        self.at += 1
        return value

    def number(self, width: int) -> int:
        return sum(self.bit() << k for k in range(width))


def packed(data: bytes, at: int, width: int, count: int) -> tuple[list[int], int]:
    """Read packed(width, count) at byte `at`; also return where it ends."""
    bits = Bits(data[at:])
    return [bits.number(width) for _ in range(count)], at + (width * count + 7) // 8


def code_table(lengths: list[int]) -> dict[tuple[int, ...], int]:
    """Return symbol by code word; words are counted upwards in order of (length, symbol)."""
    table, word, before = {}, 0, None
    for length, symbol in sorted((n, k) for k, n in enumerate(lengths) if n):
        if before is not None:
            word = (word + 1) << (length - before)
        table[tuple(word >> k & 1 for k in reversed(range(length)))] = symbol
        before = length
    return table


def lane(data: bytes, count: int, table: dict[tuple[int, ...], int]) -> list[int]:
    """Return the symbols of one lane."""
    bits, symbols = Bits(data), []
    for _ in range(count):
        word = (bits.bit(),)
        while word not in table:
            word += (bits.bit(),)
        symbols.append(table[word])
    assert (bits.at + 7) // 8 == len(data) and not any(bits.bit() for _ in range(-bits.at % 8))
    return symbols


def huffman(data: bytes, count: int) -> list[int]:
    low, escape_low, escape_count, stream_bytes, span, minimum, escape_width, lane_width, _ = (
        struct.unpack_from("<iiIIHHBBH", data)
    )
    lanes = (count + 2047) // 2048
    lengths, at = packed(data, 24, 4, span + 1)
    sizes, at = packed(data, at, lane_width, lanes - 1)
    escaped, at = packed(data, at, escape_width, escape_count)
    sizes = [minimum + size for size in sizes]
    sizes.append(stream_bytes - sum(sizes))
    escapes, table, result = iter(escaped), code_table(lengths), []
    for k, size in enumerate(sizes):
        for symbol in lane(data[at : at + size], min(2048, count - 2048 * k), table):
            result.append(escape_low + next(escapes) if symbol == span else low + symbol)
        at += size
    assert at == len(data) and next(escapes, None) is None
    return result


def dense(data: bytes, count: int) -> list[int]:
    low, bits = struct.unpack_from("<iB", data)
    return [low + element for element in packed(data, 5, bits, count)[0]]


def sparse(data: bytes, rows: int, columns: int) -> list[dict[int, float]]:
    """Return value by column, for each row."""
    count, row_width = struct.unpack_from("<IB", data)
    counts, at = packed(data, 5, row_width, rows)
    places, at = packed(data, at, (columns - 1).bit_length(), count)
    entries = iter(zip(places, struct.unpack_from(f"<{count}e", data, at), strict=True))
    return [dict(next(entries) for _ in range(n)) for n in counts]


def steps(data: bytes, step_type: int, count: int) -> list[float]:
    if step_type == 2:
        words = struct.unpack_from(f"<{count}H", data)
        return [struct.unpack("<f", struct.pack("<I", word << 16))[0] for word in words]
    return list(struct.unpack_from(f"<{count}{'fe'[step_type]}", data))


def record(data: bytes) -> list[list[float]]:
    """Return step · code + outlier for every place of the matrix."""
    magic, version, tag, form, kind, rows, columns, group, outlier_bytes, code_bytes = (
        struct.unpack_from("<4sBBBBIIIIQ", data)
    )
    assert (magic, version) == (b"NPLR", 1)
    assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
    groups = -(-columns // group)
    count = (1, columns, rows * groups)[form]
    step = steps(data[32:], kind, count)
    at = 32 + count * (4 if kind == 0 else 2)
    code = {1: huffman, 2: dense}[tag](data[at : at + code_bytes], rows * columns)
    extra = [{}] * rows
    if outlier_bytes:
        extra = sparse(data[at + code_bytes : -4], rows, columns)
    place = (lambda i, j: 0, lambda i, j: j, lambda i, j: i * groups + j // group)[form]
    return [
        [step[place(i, j)] * code[i * columns + j] + extra[i].get(j, 0.0) for j in range(columns)]
        for i in range(rows)
    ]

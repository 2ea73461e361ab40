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


def huffman(data: bytes, rows: int, columns: int) -> list[int]:
    count = rows * columns
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


def dense(data: bytes, rows: int, columns: int) -> list[int]:
    low, bits = struct.unpack_from("<iB", data)
    return [low + element for element in packed(data, 5, bits, rows * columns)[0]]


MANTISSA = [8388608, 8032959, 7692387, 7366255, 7053950, 6754886, 6468501, 6194258]
MANTISSA += [5931642, 5680159, 5439339, 5208729, 4987896, 4776426, 4573921, 4380002]


def shares(lengths: list[int], room: int) -> list[int]:
    """Return the frequencies of lengths in sixteenths of a bit."""
    weights = [MANTISSA[x % 16] >> x // 16 for x in lengths]
    free, total = room - len(lengths), sum(weights)
    below = [k + free * sum(weights[:k]) // total for k in range(len(lengths) + 1)]
    return [b - a for a, b in zip(below, below[1:], strict=False)]


class Stack:
    """A stream's words and its state."""

    def __init__(self, words: list[int]):
        assert words[-1] != 0
        self.state, self.words = words[-1] << 32 | words[-2], words[:-2]

    def symbol(self, frequencies: list[int]) -> int:
        rest, below, k = self.state % 2**24, 0, 0
        while rest >= below + frequencies[k]:
            below += frequencies[k]
            k += 1
        self.state = frequencies[k] * (self.state >> 24) + rest - below
        if self.state < 2**32 and self.words:
            self.state = self.state << 32 | self.words.pop()
        return k

    def classes(self, count: int, lengths: list[int]) -> list[int]:
        if len(lengths) == 1:
            return [0] * count
        frequencies = shares([8 * x for x in lengths], 2**24)
        return [self.symbol(frequencies) for _ in range(count)]


def push(words: list[int], state: int, k: int, frequencies: list[int]) -> int:
    """Return the state after an encoder has taken symbol k; words may be appended."""
    if state >= frequencies[k] << 40:
        words.append(state % 2**32)
        state >>= 32
    return ((state // frequencies[k]) << 24) + sum(frequencies[:k]) + state % frequencies[k]


def unfolded(u: int) -> int:
    return -(u + 1) // 2 if u % 2 else u // 2


def shape(span: int, scale: int, square: int, linear: int, zero: int) -> list[int]:
    """Return the lengths of −span .. span in a table of the shaped form."""

    def length(z: int) -> int:
        bent = linear * z * 2**scale + square * z * z + 4**scale
        return 0 if z == 0 else zero + bent // 2 ** (2 * scale + 1)

    lengths = [length(abs(z)) for z in range(-span, span + 1)]
    return [x - min(lengths) for x in lengths]


def rans_tables(data: bytes, at: int, span: int, form: int, contexts: int):
    """Return the frequencies of every context, and where the tables end."""
    begins, at = packed(data, at, 1, contexts - 1)
    tables, lists, numbers = 1 + sum(begins), [5, 1][form], []
    widths, at = packed(data, at, 4, lists)
    for width in widths:
        some, at = packed(data, at, width, tables)
        numbers.append(some)
    if form == 1:
        listed, at = packed(data, at, 8, tables * (2 * span + 1))
        lengths = [listed[t * (2 * span + 1) :][: 2 * span + 1] for t in range(tables)]
    else:
        folded = zip(*numbers[1:], strict=True)
        lengths = [shape(span, h, a, unfolded(b), unfolded(g)) for h, a, b, g in folded]
    escapes = [2**e for e in numbers[0]]
    found = [[*shares(x, 2**24 - e), e] for x, e in zip(lengths, escapes, strict=True)]
    return [found[sum(begins[:c])] for c in range(contexts)], at


def rans(data: bytes, rows: int, columns: int) -> list[int]:
    """Return the integers in row-major order."""
    span, form, row_classes, column_classes, bands, escape_count = struct.unpack_from(
        "<HBBBHI", data
    )
    sizes, at = list(struct.unpack_from(f"<{bands}I", data, 11)), 11 + 4 * bands
    lengths = []
    for classes in (row_classes, column_classes):
        some, at = packed(data, at, 4, classes) if classes > 1 else ([0], at)
        lengths.append(some)
    tables, at = rans_tables(data, at, span, form, row_classes + column_classes - 1)
    escaped = []
    if escape_count:
        low, width = struct.unpack_from("<iB", data, at)
        above, at = packed(data, at + 5, width, escape_count)
        escaped = [low + x for x in above]
    symbols, row, column, per_band = {}, [], [], -(-rows // bands)
    for band, size in enumerate(sizes):
        stack = Stack(list(struct.unpack_from(f"<{size}I", data, at)))
        at += 4 * size
        if band == 0:
            row = stack.classes(rows, lengths[0])
            column = stack.classes(columns, lengths[1])
        inside = range(rows)[band * per_band : (band + 1) * per_band]
        for a in range(row_classes):
            for b in range(column_classes):
                for i in (i for i in inside if row[i] == a):
                    for j in (j for j in range(columns) if column[j] == b):
                        symbols[i, j] = stack.symbol(tables[a + b])
        assert stack.state == 2**32 and not stack.words
    assert at == len(data) and len(symbols) == rows * columns
    order = [symbols[i, j] for i in range(rows) for j in range(columns)]
    escapes = iter(escaped)
    result = [next(escapes) if k == 2 * span + 1 else k - span for k in order]
    assert next(escapes, None) is None
    return result


def sparse(data: bytes, rows: int, columns: int) -> list[dict[int, float]]:
    """Return value by column, for each row."""
    count, row_width = struct.unpack_from("<IB", data)
    places, at = [], 0
    if row_width:
        counts, at = packed(data, 5, row_width, rows)
        some, at = packed(data, at, (columns - 1).bit_length(), count)
        row = [i for i, n in enumerate(counts) for _ in range(n)]
        places = list(zip(row, some, strict=True))
    else:
        width, unary_bytes = struct.unpack_from("<BI", data, 5)
        low, at = packed(data, 10, width, count)
        bits, place = Bits(data[at : at + unary_bytes]), -1
        for part in low:
            place += 1 + part
            while not bits.bit():
                place += 1 << width
            places.append(divmod(place, columns))
        at += unary_bytes
    result: list[dict[int, float]] = [{} for _ in range(rows)]
    values = struct.unpack_from(f"<{count}e", data, at)
    for (i, j), value in zip(places, values, strict=True):
        result[i][j] = value
    return result


def rung_value(rung: int) -> float:
    return [8, 10, 11, 13][rung % 4] / 8 * 2 ** (rung // 4)


def steps(data: bytes, step_type: int, count: int) -> tuple[list[float], int]:
    """Return the steps and how many bytes they take."""
    if step_type >= 16:
        base, low = struct.unpack_from("<fh", data)
        rungs, at = packed(data, 6, step_type - 16, count)
        values = [rung_value(low + r) for r in rungs]
        return [struct.unpack("<f", struct.pack("<f", base * x))[0] for x in values], at
    if step_type == 2:
        words = struct.unpack_from(f"<{count}H", data)
        return [struct.unpack("<f", struct.pack("<I", w << 16))[0] for w in words], 2 * count
    letter, size = "fe"[step_type], (4, 2)[step_type]
    return list(struct.unpack_from(f"<{count}{letter}", data)), size * count


def record(data: bytes) -> list[list[float]]:
    """Return step · code − minimum + outlier for every place of the matrix."""
    magic, version, tag, form, kind, rows, columns, group, outlier_bytes, code_bytes = (
        struct.unpack_from("<4sBBBBIIIIQ", data)
    )
    assert (magic, version) == (b"NPLR", 1)
    assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
    groups = -(-columns // group)
    count = (1, columns, rows * groups, columns, 2 * rows * groups)[form]
    step, step_bytes = steps(data[32:], kind, count)
    at = 32 + step_bytes
    row_step = [1.0] * rows
    if form == 3:
        (low,) = struct.unpack_from("<h", data, at)
        rungs, at = packed(data, at + 2, 4, rows)
        row_step = [rung_value(low + rung) for rung in rungs]
    code = {1: huffman, 2: dense, 3: rans}[tag](data[at : at + code_bytes], rows, columns)
    extra = [{}] * rows
    if outlier_bytes:
        extra = sparse(data[at + code_bytes : -4], rows, columns)
    places = (lambda i, j: 0, lambda i, j: j, lambda i, j: i * groups + j // group)
    place = places[(0, 1, 2, 1, 2)[form]]
    minimum = step[rows * groups :] if form == 4 else [0.0] * (rows * groups)
    return [
        [
            row_step[i] * step[place(i, j)] * code[i * columns + j]
            - minimum[places[2](i, j)]
            + extra[i].get(j, 0.0)
            for j in range(columns)
        ]
        for i in range(rows)
    ]

"""Symbols <-> Huffman bit streams (docs/formats/huffman.md).

Every 2048 symbols are a lane: a bit stream that begins at a byte, so that lanes can be decoded
in parallel.
"""

import numpy as np
from jaxtyping import Int32, Int64, Integer, UInt8

from nearplane.codes.bitstream import place_fields, words_at
from nearplane.codes.canonical import AT_ONCE, Lookup, code_words, lookup
from nearplane.codes.corrupt import require
from nearplane.op import Op

LANE = 2048  # symbols of a lane
WINDOW = 12  # bits that index the decoding table, unless a code word is longer
# lanes decoded side by side: enough to hide the cost of a numpy call, few enough for the cache
LANES_AT_ONCE = 1024
# entry k is a mask of AT_ONCE bytes that keeps the first k symbols of a lookup
KEEP_MASK = np.array([int.from_bytes(b"\1" * k, "little") for k in range(AT_ONCE + 1)], "<u4")


def lane_counts(count: int) -> Int64[np.ndarray, " lanes"]:
    """Return how many of `count` symbols each lane holds: LANE, and the last one the rest."""
    counts = np.full(-(-count // LANE), LANE, np.int64)
    if count % LANE:
        counts[-1] = count % LANE
    return counts


@Op
def encode_lanes(
    symbols: Integer[np.ndarray, " count"], lengths: UInt8[np.ndarray, " symbols"]
) -> tuple[UInt8[np.ndarray, " bytes"], Int64[np.ndarray, " lanes"]]:
    """Return the bytes of all lanes, one lane after another, and the bytes of each.

    - `lengths`: the code length of every symbol, in bits.
    """
    words = code_words(lengths)
    step = LANE * LANES_AT_ONCE // 4
    parts = [
        _encode(symbols[at : at + step], words, lengths) for at in range(0, len(symbols), step)
    ]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _encode(
    symbols: np.ndarray, words: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Encode the symbols of whole lanes.

    Neighbouring code words are joined twice; then each group of four is placed at its bit.
    """
    lanes = -(-len(symbols) // LANE)
    code, size = words.take(symbols), lengths.take(symbols)
    if len(symbols) < lanes * LANE:
        # code words of no bits are appended to the last lane to make it as long as the others
        code, size = (np.append(x, np.zeros(lanes * LANE - len(x), x.dtype)) for x in (code, size))
    # four code words of at most 15 bits have at most 60 bits
    for wide in (np.uint32, np.uint64):
        code = code[::2].astype(wide) | code[1::2].astype(wide) << size[::2].astype(wide)
        size = size[::2] + size[1::2]
    ends = size.reshape(lanes, -1).cumsum(axis=1, dtype=np.int64)
    sizes = (ends[:, -1] + 7) // 8
    starts = 8 * (np.cumsum(sizes) - sizes)
    place = (ends + starts[:, None]).reshape(-1) - size
    return place_fields(code, place, int(sizes.sum())), sizes


@Op
def decode_lanes(
    stream: UInt8[np.ndarray, " bytes"],
    sizes: Int64[np.ndarray, " lanes"],
    count: int,
    lengths: UInt8[np.ndarray, " symbols"],
    low: int,
) -> Int32[np.ndarray, " count"]:
    """Return low + symbol (modulo 2^32, as int32) for the `count` symbols in `stream`.

    CorruptError unless every lane holds exactly its symbols. The caller has already checked that
    `lengths` describe a complete prefix code, and that `sizes`, the bytes of each lane, are
    positive and add up to the stream.
    """
    values = (low + np.arange(len(lengths))).astype(np.int64).astype(np.uint32).view(np.int32)
    if np.count_nonzero(lengths) == 1:
        return _one_symbol(stream, sizes, count, values[lengths > 0])
    table = lookup(lengths, values, max(WINDOW, int(lengths.max())))
    targets, ends = lane_counts(count), np.cumsum(sizes)
    out = np.empty(count, np.int32)
    for at in range(0, len(sizes), LANES_AT_ONCE):
        part = slice(at, at + LANES_AT_ONCE)
        begin = ends[at] - sizes[at]
        some = stream[begin : ends[part][-1]]
        out[at * LANE : (at + LANES_AT_ONCE) * LANE] = _decode(
            some, ends[part] - begin, targets[part], table
        )
    return out


def _one_symbol(stream: np.ndarray, sizes: np.ndarray, count: int, value: np.ndarray) -> np.ndarray:
    """Decode a code of one symbol: its code word is the bit 0, so all bytes are zero."""
    require(not stream.any(), "a lane holds a code word that does not exist")
    require(bool((sizes == (lane_counts(count) + 7) // 8).all()), "a lane has the wrong size")
    return value.repeat(count)


def _decode(stream: np.ndarray, ends: np.ndarray, targets: np.ndarray, table: Lookup) -> np.ndarray:
    """Return the values in some lanes, which end at the bytes `ends` of `stream`."""
    patterns = np.ascontiguousarray(_patterns(stream, ends, int(targets.max()), table).T)
    found = table.found.take(patterns)
    after = found.cumsum(axis=1, dtype=np.int32)
    require(bool((after[:, -1] >= targets).all()), "a lane ends before its symbols")
    keep = np.minimum(found, np.maximum(targets[:, None] - (after - found), 0))
    flat = patterns.reshape(-1)
    bits = table.bits.reshape(-1).take(patterns * (AT_ONCE + 1) + keep).sum(axis=1)
    _check_ends(stream, ends, bits)
    kept = KEEP_MASK.take(keep.reshape(-1)).view(bool).reshape(-1, AT_ONCE)
    return table.value.take(flat, axis=0)[kept]


def _check_ends(stream: np.ndarray, ends: np.ndarray, bits: np.ndarray) -> None:
    """ "A lane's symbols MUST end in its last byte, and the bits after them MUST be zero."""
    sizes = np.diff(ends, prepend=0)
    require(bool(((bits + 7) // 8 == sizes).all()), "a lane's symbols do not fill it exactly")
    padding = stream[ends - 1] >> ((bits - 1) % 8).astype(np.uint8) >> np.uint8(1)
    require(not padding.any(), "padding after a lane is not zero")


def _patterns(
    stream: np.ndarray, ends: np.ndarray, most: int, table: Lookup
) -> Int64[np.ndarray, "lookups lanes"]:
    """Return the index of every lookup into the decoding table; row k has the k-th of each lane.

    A lane that has reached its end reads on in the bytes that follow; the caller drops those
    surplus symbols.
    """
    words, used = words_at(stream), table.bits[:, AT_ONCE].copy()
    bit = 8 * np.concatenate([[0], ends[:-1]])
    limit, mask = 8 * ends, (1 << table.window) - 1
    per_read = (
        57 // table.window
    )  # 64 bits read at a byte have 57 or more from any bit in that byte on
    trace = np.empty((most + per_read, len(ends)), np.int64)
    step, word, taken = 0, np.empty_like(bit), np.empty_like(bit)
    # every lookup finds a symbol, so `most` of them always suffice
    while step < most and (bit < limit).any():
        # mode="clip" keeps lanes that have reached their end inside the buffer
        words.take(bit >> 3, out=word, mode="clip")
        word >>= bit & 7
        for pattern in trace[step : step + per_read]:
            np.bitwise_and(word, mask, out=pattern)
            used.take(pattern, out=taken, mode="clip")
            word >>= taken
            bit += taken
        step += per_read
    return trace[:step]

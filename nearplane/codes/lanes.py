"""Symbols <-> lanes: byte-aligned streams of 2048 code words (docs/formats/huffman.md)."""

import numpy as np
from jaxtyping import Int32, Int64, Integer, UInt8

from nearplane.codes.bitstream import place_fields, words_at
from nearplane.codes.canonical import AT_ONCE, Lookup, code_words, lookup
from nearplane.codes.corrupt import require
from nearplane.op import Op

LANE = 2048  # symbols
WINDOW = 12  # bits looked up at once, unless a code word is longer
TOGETHER = 1024  # lanes that advance together: enough to hide numpy's call cost, few for the cache
# AT_ONCE bytes of 1 or 0, as one word: which symbols of a lookup to keep
KEEP = np.array([int.from_bytes(b"\1" * k, "little") for k in range(AT_ONCE + 1)], "<u4")


def lane_counts(count: int) -> Int64[np.ndarray, " lanes"]:
    """Return how many symbols each lane holds: LANE, the last one what remains."""
    counts = np.full(-(-count // LANE), LANE, np.int64)
    if count % LANE:
        counts[-1] = count % LANE
    return counts


@Op
def encode_lanes(
    symbols: Integer[np.ndarray, " count"], lengths: UInt8[np.ndarray, " symbols"]
) -> tuple[UInt8[np.ndarray, " bytes"], Int64[np.ndarray, " lanes"]]:
    """Return the lanes' bytes one after another, and the size of each lane in bytes."""
    words = code_words(lengths)
    step = LANE * TOGETHER // 4
    parts = [
        _encode(symbols[at : at + step], words, lengths) for at in range(0, len(symbols), step)
    ]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _encode(
    symbols: np.ndarray, words: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Join neighbours twice, place each group of four at its bit, and OR what shares a word."""
    lanes = -(-len(symbols) // LANE)
    code, size = words.take(symbols), lengths.take(symbols)
    if len(symbols) < lanes * LANE:
        # code words of no bits fill the last lane
        code, size = (np.append(x, np.zeros(lanes * LANE - len(x), x.dtype)) for x in (code, size))
    # 4 code words of at most 15 bits fit into 60
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

    The caller has checked that `lengths` are complete and that `sizes` are positive and add up to
    the stream. Whether every lane holds exactly its symbols is checked here.
    """
    values = (low + np.arange(len(lengths))).astype(np.int64).astype(np.uint32).view(np.int32)
    if np.count_nonzero(lengths) == 1:
        return _one_symbol(stream, sizes, count, values[lengths > 0])
    table = lookup(lengths, values, max(WINDOW, int(lengths.max())))
    targets, ends = lane_counts(count), np.cumsum(sizes)
    out = np.empty(count, np.int32)
    for at in range(0, len(sizes), TOGETHER):
        part = slice(at, at + TOGETHER)
        begin = ends[at] - sizes[at]
        some = stream[begin : ends[part][-1]]
        out[at * LANE : (at + TOGETHER) * LANE] = _decode(
            some, ends[part] - begin, targets[part], table
        )
    return out


def _one_symbol(stream: np.ndarray, sizes: np.ndarray, count: int, value: np.ndarray) -> np.ndarray:
    """A lonely symbol has the code word 0, so its lanes are zero."""
    require(not stream.any(), "a lane holds a code word that does not exist")
    require(bool((sizes == (lane_counts(count) + 7) // 8).all()), "a lane has the wrong size")
    return value.repeat(count)


def _decode(stream: np.ndarray, ends: np.ndarray, targets: np.ndarray, table: Lookup) -> np.ndarray:
    """Return the values of some lanes; `ends` are byte positions in `stream`."""
    patterns = np.ascontiguousarray(_patterns(stream, ends, int(targets.max()), table).T)
    found = table.found.take(patterns)
    after = found.cumsum(axis=1, dtype=np.int32)
    require(bool((after[:, -1] >= targets).all()), "a lane ends before its symbols")
    keep = np.minimum(found, np.maximum(targets[:, None] - (after - found), 0))
    flat = patterns.reshape(-1)
    bits = table.bits.reshape(-1).take(patterns * (AT_ONCE + 1) + keep).sum(axis=1)
    _check_ends(stream, ends, bits)
    kept = KEEP.take(keep.reshape(-1)).view(bool).reshape(-1, AT_ONCE)
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
    """Return the bits each lane looks up, one row a step, until every lane is at its end.

    A lane that is done reads on in what follows; its surplus symbols are dropped later.
    """
    words, used = words_at(stream), table.bits[:, AT_ONCE].copy()
    bit = 8 * np.concatenate([[0], ends[:-1]])
    limit, mask = 8 * ends, (1 << table.window) - 1
    per_read = 57 // table.window  # a word shifted by up to 7 bits still has 57
    trace = np.empty((most + per_read, len(ends)), np.int64)
    step, word, taken = 0, np.empty_like(bit), np.empty_like(bit)
    # every lookup finds a symbol, so `most` of them always suffice
    while step < most and (bit < limit).any():
        # "clip" keeps lanes that are done inside the buffer
        words.take(bit >> 3, out=word, mode="clip")
        word >>= bit & 7
        for pattern in trace[step : step + per_read]:
            np.bitwise_and(word, mask, out=pattern)
            used.take(pattern, out=taken, mode="clip")
            word >>= taken
            bit += taken
        step += per_read
    return trace[:step]

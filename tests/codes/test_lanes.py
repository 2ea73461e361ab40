import numpy as np
import pytest

from nearplane.codes.corrupt import CorruptError
from nearplane.codes.lanes import LANE, decode_lanes, encode_lanes, lane_counts
from nearplane.codes.lengths import code_lengths
from nearplane.op import Op


def coded(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    symbols = np.random.default_rng(count).geometric(0.4, count).clip(0, 9)
    lengths = code_lengths(np.bincount(symbols), 12)
    return symbols, lengths, *encode_lanes(symbols, lengths)


@pytest.mark.parametrize("count", [LANE - 1, LANE, LANE + 1, 5 * LANE + 3])
def test_sizes_are_those_of_the_code_words(count):
    symbols, lengths, stream, sizes = coded(count)
    bits = [lengths[symbols[at : at + LANE]].sum(dtype=int) for at in range(0, count, LANE)]
    assert sizes.tolist() == [-(-int(b) // 8) for b in bits]
    assert len(stream) == sizes.sum() and lane_counts(count).sum() == count
    assert np.array_equal(decode_lanes(stream, sizes, count, lengths, 0), symbols)


def test_a_lane_that_ends_elsewhere_is_refused():
    symbols, lengths, stream, sizes = coded(3 * LANE)
    for shift in (1, -1):
        with pytest.raises(CorruptError):
            decode_lanes(stream, sizes + [shift, -shift, 0], len(symbols), lengths, 0)


def test_a_byte_after_a_lane_is_refused_even_if_it_is_zero():
    symbols, lengths, stream, sizes = coded(2 * LANE)
    longer = np.insert(stream, sizes[0], 0)
    with pytest.raises(CorruptError, match="fill it exactly"):
        decode_lanes(longer, sizes + [1, 0], len(symbols), lengths, 0)


def test_a_lane_cut_between_two_symbols_is_refused():
    lengths = np.full(16, 4, np.uint8)
    stream, sizes = encode_lanes(np.arange(LANE) % 16, lengths)
    # 170 reads of 4 lookups of 3 symbols of 4 bits end exactly where the stream does
    with pytest.raises(CorruptError, match="ends before its symbols"):
        decode_lanes(stream[:1020], sizes - 4, LANE, lengths, 0)


def test_padding_in_any_lane_is_refused():
    symbols, lengths, stream, sizes = coded(40 * LANE - 5)
    bits = np.add.reduceat(lengths[symbols].astype(int), np.arange(0, len(symbols), LANE))
    padded = np.flatnonzero(bits % 8)
    assert len(padded) > 20
    for lane in padded:
        bad = stream.copy()
        bad[sizes[: lane + 1].sum() - 1] |= 1 << bits[lane] % 8
        with pytest.raises(CorruptError, match="padding"):
            decode_lanes(bad, sizes, len(symbols), lengths, 0)


def test_the_longest_codes_of_the_format():
    # doubling counts give lengths 15, 15, 14 .. 1: three lookups a read, not four
    counts = np.append(1, 1 << np.arange(15))
    symbols = np.random.default_rng(0).permutation(np.repeat(np.arange(16), counts))
    lengths = code_lengths(counts, 15)
    assert lengths.max() == 15
    stream, sizes = encode_lanes(symbols, lengths)
    assert np.array_equal(decode_lanes(stream, sizes, len(symbols), lengths, 0), symbols)


def test_every_flipped_bit_changes_the_result_or_is_refused():
    symbols, lengths, stream, sizes = coded(60)
    for bit in range(8 * len(stream)):
        bad = stream.copy()
        bad[bit // 8] ^= 1 << bit % 8
        try:
            assert not np.array_equal(decode_lanes(bad, sizes, 60, lengths, 0), symbols)
        except CorruptError:
            pass


def test_faster_versions_can_be_registered():
    assert isinstance(decode_lanes, Op) and isinstance(encode_lanes, Op)

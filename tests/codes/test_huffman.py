import numpy as np
import pytest
from hypothesis import given, settings

from nearplane.codes.alphabet import choose_alphabet, entropy, histogram
from nearplane.codes.corrupt import CorruptError
from nearplane.codes.huffman import HEADER, Huffman
from nearplane.codes.lanes import LANE, LANES_AT_ONCE
from tests.codes import slow
from tests.codes.draw import INT32, gaussian, integers


def round_trip(array: np.ndarray, code: Huffman) -> bytes:
    data = code.encode(array[None])
    decoded, used = code.decode(data + b"garbage", 1, len(array))
    assert used == len(data) and np.array_equal(decoded[0], array)
    return data


@given(integers())
@settings(max_examples=60)
def test_the_slow_decoder_of_the_document_agrees(array):
    data = round_trip(array, Huffman())
    if len(array):
        assert slow.huffman(data, 1, len(array)) == array.tolist()


@pytest.mark.parametrize("limit", [1, 2, 5, 7, 12, 13, 15])
@pytest.mark.parametrize("sigma", [0.05, 1.05, 4.2, 900.0])
def test_every_limit_is_kept(limit, sigma):
    array = gaussian(limit, 2 * LANE + 77, sigma)
    data = round_trip(array, Huffman(limit))
    span = HEADER.unpack_from(data)[4]
    lengths, _ = slow.packed(data, HEADER.size, 4, span + 1)
    assert max(lengths) <= limit


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("lanes", [1, 2, LANES_AT_ONCE, LANES_AT_ONCE + 1])
def test_lane_borders(lanes, extra):
    round_trip(gaussian(3, LANE * lanes + extra, 2.1), Huffman())


def test_rows_of_unequal_scale_make_lanes_of_unequal_size():
    scale = np.geomspace(0.01, 100, 64)[:, None]
    array = np.rint(np.random.default_rng(0).normal(size=(64, 1000)) * scale).astype(np.int32)
    data = round_trip(array.reshape(-1), Huffman())
    assert slow.huffman(data, *array.shape) == array.reshape(-1).tolist()


@pytest.mark.parametrize("value", [0, -1, INT32.min, INT32.max])
def test_a_constant_takes_one_bit_each(value):
    data = round_trip(np.full(10_000, value, np.int32), Huffman())
    assert len(data) <= 10_000 / 8 + HEADER.size + 5


def test_alphabets_at_both_ends_of_int32():
    for low in (INT32.min, INT32.max - 6):
        array = (low + np.random.default_rng(0).integers(0, 7, 5000)).astype(np.int32)
        array[::100] = 0
        round_trip(array, Huffman())


@given(integers())
@settings(max_examples=60)
def test_size_is_what_the_parts_add_up_to(array):
    code, (values, counts) = Huffman(), histogram(array)
    size = len(code.encode(array[None]))
    assert size <= code.bound(values, counts)
    if not len(array):
        return
    # docs/formats/huffman.md, Size: header, 7 bits and 12 bits a lane, lengths, escaped
    alphabet = choose_alphabet(values, counts, code.limit)
    lanes = -(-len(array) // LANE)
    assert 8 * size <= 8 * HEADER.size + alphabet.bits + (7 + 12) * lanes + 8


@pytest.mark.parametrize("sigma, above", [(1.05, 0.105), (2.1, 0.056), (4.2, 0.056)])
def test_bits_above_entropy(sigma, above):
    # KERNELS.md's table for an ideal source: 0.096, 0.049, 0.047 of the code, 0.006 of lanes
    array = gaussian(5, 576 * 1536, sigma)
    bits = 8 * len(Huffman().encode(array[None])) / len(array)
    assert bits - entropy(histogram(array)[1]) < above


@pytest.mark.parametrize("sigma", [0.3, 1.05, 2.1, 4.2, 40.0])
@pytest.mark.parametrize("count", [1000, 20_000, 400_000])
def test_prediction_of_independent_integers(sigma, count):
    array = gaussian(7, count, sigma)
    predicted = Huffman().predict(*histogram(array))
    # one bit too many or few for the lane sizes, and padding that is not quite the mean
    lanes = count / LANE
    assert abs(predicted - len(Huffman().encode(array[None]))) <= lanes / 8 + lanes**0.5 + 2


def test_same_input_same_bytes():
    array = gaussian(1, 9999, 2.1)
    assert Huffman().encode(array[None]) == Huffman().encode(array.copy()[None])


@pytest.mark.parametrize("limit", [0, 16])
def test_impossible_limits_are_a_value_error(limit):
    with pytest.raises(ValueError):
        Huffman(limit)


EXAMPLE = gaussian(2, LANE + 9, 1.5)
EXAMPLE[[3, 70]] = 1000, -1000


@pytest.mark.parametrize(
    "field, value",
    [
        (0, INT32.max - 2),  # the alphabet exceeds int32
        (1, INT32.max),  # an escaped integer exceeds int32
        (2, 0),
        (2, 1),
        (2, 5),
        (2, 2**32 - 1),  # escapes without bytes
        (3, 0),
        (3, 2**32 - 1),  # lanes without bytes
        (4, 0),
        (4, 2**16 - 1),  # lengths without bytes
        (5, 0),
        (5, 2**16 - 1),
        (6, 33),
        (7, 13),
        (8, 1),
    ],
)
def test_headers_that_break_a_rule_are_refused(field, value):
    data = Huffman().encode(EXAMPLE[None])
    fields = list(HEADER.unpack_from(data))
    assert fields[field] != value
    fields[field] = value
    with pytest.raises(CorruptError):
        Huffman().decode(HEADER.pack(*fields) + data[HEADER.size :], 1, len(EXAMPLE))


def test_lanes_of_impossible_size_are_refused():
    data = Huffman().encode(gaussian(0, 3 * LANE, 2.0)[None])
    fields = list(HEADER.unpack_from(data))
    # the last lane has what remains: with other sizes of the first two, less than nothing
    for minimum in (0, 255, fields[3] // 2, 3840, 2**16 - 1):
        fields[5] = minimum
        with pytest.raises(CorruptError, match="impossible"):
            Huffman().decode(HEADER.pack(*fields) + data[HEADER.size :], 1, 3 * LANE)


@pytest.mark.parametrize("count", [1, LANE, LANE + 8, LANE + 90, 2 * LANE + 1, 2**60])
def test_another_count_is_refused(count):
    data = Huffman().encode(EXAMPLE[None])
    with pytest.raises(CorruptError):
        Huffman().decode(data, 1, count)


def test_a_lonely_symbol_has_no_other_word():
    data = bytearray(Huffman().encode(np.full((1, 100), 3, np.int32)))
    data[-5] |= 4
    with pytest.raises(CorruptError, match="does not exist"):
        Huffman().decode(bytes(data), 1, 100)

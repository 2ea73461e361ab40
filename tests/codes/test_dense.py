import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearplane.codes.corrupt import CorruptError
from nearplane.codes.dense import Dense, pack_bits, packed_bytes, unpack_bits
from tests.codes import slow

widths = pytest.mark.parametrize("width", range(1, 33))


def numbers(width: int, count: int) -> np.ndarray:
    drawn = np.random.default_rng(width + count).integers(0, 2**width, count, dtype=np.uint64)
    drawn[:1] = 2**width - 1
    return drawn.astype(np.uint32)


@widths
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 63, 129])
def test_elements_come_back_and_mean_what_the_document_says(width, count):
    values = numbers(width, count)
    packed = pack_bits(values, width)
    assert len(packed) == packed_bytes(width, count)
    assert np.array_equal(unpack_bits(packed, width, count), values)
    assert slow.packed(packed, 0, width, count)[0] == values.tolist()


@widths
def test_padding_that_is_not_zero_is_refused(width):
    packed = bytearray(pack_bits(numbers(width, 3), width))
    if 3 * width % 8:
        packed[-1] |= 0x80
        with pytest.raises(CorruptError):
            unpack_bits(bytes(packed), width, 3)


@widths
def test_a_buffer_of_another_size_is_refused(width):
    packed = pack_bits(numbers(width, 16), width)
    for wrong in (packed[:-1], packed + b"\0"):
        with pytest.raises(CorruptError):
            unpack_bits(wrong, width, 16)


def test_width_zero_has_no_bytes():
    assert pack_bits(np.zeros(5, np.int64), 0) == b""
    assert unpack_bits(b"", 0, 5).tolist() == [0] * 5


@pytest.mark.parametrize("values, width", [([8], 3), ([-1], 3), ([1], 0), ([0], 33), ([0], -1)])
def test_what_does_not_fit_is_a_value_error(values, width):
    with pytest.raises(ValueError):
        pack_bits(np.array(values), width)


@given(st.integers(1, 32), st.data())
def test_a_stated_width_is_kept(bits, data):
    low = data.draw(st.integers(-(2**31), 2**31 - 2**bits))
    offsets = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=40))
    integers = (np.array(offsets) + low).astype(np.int32)[None]
    encoded = Dense(bits).encode(integers)
    assert len(encoded) == 5 + packed_bytes(bits, len(offsets))
    decoded, used = Dense().decode(encoded, *integers.shape)
    assert np.array_equal(decoded, integers) and used == len(encoded)
    assert slow.dense(encoded, *integers.shape) == integers[0].tolist()


def test_low_is_that_of_twos_complement_where_it_fits():
    assert Dense(3).encode(np.array([[0, 3]], np.int32))[:4] == (-4).to_bytes(
        4, "little", signed=True
    )
    assert Dense(3).encode(np.array([[0, 7]], np.int32))[:4] == bytes(4)


def test_integers_too_far_apart_are_a_value_error():
    with pytest.raises(ValueError, match="do not fit in bits=3"):
        Dense(3).encode(np.array([[0, 8]], np.int32))


@pytest.mark.parametrize("bits", [0, 33])
def test_impossible_widths_are_a_value_error(bits):
    with pytest.raises(ValueError):
        Dense(bits)


@pytest.mark.parametrize("low, bits", [(2**31 - 2, 2), (0, 0), (0, 33), (1, 32)])
def test_impossible_headers_are_refused(low, bits):
    data = low.to_bytes(4, "little") + bytes([bits]) + b"\xff" * 40
    with pytest.raises(CorruptError):
        Dense().decode(data, 2, 4)

"""Laws of every registered code; a new one is tested by its registration alone."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane.codes import CODES, CorruptError, by_tag, histogram, register
from tests.codes.draw import INT32, gaussian, integers

every_code = pytest.mark.parametrize("code", CODES.values(), ids=lambda code: code.name)

SPECIAL = {
    "empty": [],
    "one": [5],
    "one extreme": [INT32.min],
    "constant": [-2] * 3000,
    "both extremes": [INT32.min, INT32.max],
    "all of nine symbols": list(range(-4, 5)) * 50,
    "a thousand symbols": list(range(1000)),
    "one exception": [0] * 5000 + [INT32.max],
}


@every_code
def test_names_and_tags(code):
    assert by_tag(code.tag) is code and code.name and 1 <= code.tag <= 255
    assert len({c.name for c in CODES.values()}) == len(CODES)
    with pytest.raises(ValueError, match="is taken"):
        register(code)
    assert type(code)() == code and hash(code) is not None


def round_trip(code, array: np.ndarray) -> None:
    data = code.encode(array)
    assert data == code.encode(array.copy())
    assert len(array) <= 8 * len(data) <= 8 * code.bound(*histogram(array))
    for rest in (b"", b"\xff" * 9):
        decoded, used = code.decode(memoryview(data + rest), len(array))
        assert used == len(data)
        assert decoded.dtype == np.int32 and np.array_equal(decoded, array)


@every_code
@pytest.mark.parametrize("case", SPECIAL)
def test_special_integers_come_back(code, case):
    round_trip(code, np.array(SPECIAL[case], np.int32))


@every_code
@given(array=integers())
@settings(max_examples=80)
def test_integers_come_back(code, array):
    round_trip(code, array)


@every_code
def test_the_input_may_be_read_only(code):
    array = gaussian(0, 100, 2.0)
    array.flags.writeable = False
    round_trip(code, array)


@every_code
@given(array=integers(300).filter(len), part=st.floats(0, 1, exclude_max=True))
@settings(max_examples=60)
def test_truncated_bytes_are_refused(code, array, part):
    data = code.encode(array)
    with pytest.raises(CorruptError):
        code.decode(data[: int(part * len(data))], len(array))


@every_code
@given(array=integers(300).filter(len), seed=st.integers(0, 999))
@settings(max_examples=150)
def test_altered_bytes_are_refused_or_give_the_declared_count(code, array, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(code.encode(array))
    for at in rng.integers(0, len(data), rng.integers(1, 4)):
        data[at] = rng.integers(256)
    try:
        decoded, used = code.decode(bytes(data), len(array))
    except CorruptError:
        return
    assert len(decoded) == len(array) and used <= len(data)


@every_code
@given(data=st.binary(max_size=200), count=st.integers(1, 2**62))
def test_any_bytes_are_refused_or_give_the_declared_count(code, data, count):
    try:
        decoded, used = code.decode(data, count)
    except CorruptError:
        return
    assert len(decoded) == count <= 8 * used <= 8 * len(data)


@every_code
@pytest.mark.parametrize("count", [10**5, 2**31, 2**60, 2**70])
def test_promises_are_checked_before_memory_is_taken(code, count):
    data = code.encode(gaussian(0, 1000, 2.0))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError):
            code.decode(data, count)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()

"""Laws of every registered code; a new one is tested by its registration alone."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane.codes import CODES, CorruptError, by_tag, histogram, register
from tests.codes.draw import INT32, gaussian, laws, matrices, spread

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
    "all exceptions": [INT32.min, INT32.max, 0] * 40,
}
SHAPES = {"a row": (1, -1), "a column": (-1, 1)}


@every_code
def test_names_and_tags(code):
    assert by_tag(code.tag) is code and code.name and 1 <= code.tag <= 255
    assert len({c.name for c in CODES.values()}) == len(CODES)
    with pytest.raises(ValueError, match="is taken"):
        register(code)
    assert type(code)() == code and hash(code) is not None


def round_trip(code, matrix: np.ndarray) -> None:
    data = code.encode(matrix)
    assert data == code.encode(matrix.copy())
    size, bound = len(data), code.bound(*histogram(matrix.reshape(-1)))
    assert matrix.size <= code.most_per_byte * size and size <= bound
    for rest in (b"", b"\xff" * 9):
        decoded, used = code.decode(memoryview(data + rest), *matrix.shape)
        assert used == size
        assert decoded.dtype == np.int32 and np.array_equal(decoded, matrix)


@every_code
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", SPECIAL)
def test_special_integers_come_back(code, case, shape):
    round_trip(code, np.array(SPECIAL[case], np.int32).reshape(SHAPES[shape]))


@every_code
@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_a_matrix_of_nothing_has_no_bytes(code, shape):
    assert code.encode(np.zeros(shape, np.int32)) == b""
    decoded, used = code.decode(b"garbage", *shape)
    assert decoded.shape == shape and used == 0


@every_code
@given(matrix=matrices())
@settings(laws, max_examples=80)
def test_integers_come_back(code, matrix):
    round_trip(code, matrix)


@every_code
@pytest.mark.parametrize("sigma", [0.3, 2.1, 40.0])
def test_rows_and_columns_of_unequal_spread_come_back(code, sigma):
    round_trip(code, spread(0, 129, 300, sigma, 1.0))


@every_code
def test_the_input_may_be_read_only(code):
    matrix = gaussian(0, 100, 2.0).reshape(5, 20)
    matrix.flags.writeable = False
    round_trip(code, matrix)


@every_code
@given(matrix=matrices(300).filter(np.size), part=st.floats(0, 1, exclude_max=True))
@settings(laws, max_examples=60)
def test_truncated_bytes_are_refused(code, matrix, part):
    data = code.encode(matrix)
    with pytest.raises(CorruptError):
        code.decode(data[: int(part * len(data))], *matrix.shape)


@every_code
@given(matrix=matrices(300).filter(np.size), seed=st.integers(0, 999))
@settings(laws, max_examples=150)
def test_altered_bytes_are_refused_or_give_the_declared_shape(code, matrix, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(code.encode(matrix))
    for at in rng.integers(0, len(data), rng.integers(1, 4)):
        data[at] = rng.integers(256)
    try:
        decoded, used = code.decode(bytes(data), *matrix.shape)
    except CorruptError:
        return
    assert decoded.shape == matrix.shape and used <= len(data)


@every_code
@given(data=st.binary(max_size=200), rows=st.integers(1, 2**31), columns=st.integers(1, 2**31))
@laws
def test_any_bytes_are_refused_or_give_the_declared_shape(code, data, rows, columns):
    try:
        decoded, used = code.decode(data, rows, columns)
    except CorruptError:
        return
    assert decoded.shape == (rows, columns) and used <= len(data)
    assert decoded.size <= code.most_per_byte * used


@every_code
@pytest.mark.parametrize("rows", [10**6, 2**31, 2**60, 2**70])
def test_promises_are_checked_before_memory_is_taken(code, rows):
    data = code.encode(gaussian(0, 1000, 2.0)[None])
    for shape in ((rows, 1), (1, rows), (rows, 2**20)):
        tracemalloc.start()
        try:
            with pytest.raises(CorruptError):
                code.decode(data, *shape)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()

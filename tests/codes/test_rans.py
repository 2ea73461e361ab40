import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings

from nearplane.codes import CorruptError, Rans, fitting
from nearplane.codes.rans import HEADER
from tests.codes import slow
from tests.codes.draw import INT32, gaussian, laws, matrices, spread


def round_trip(matrix: np.ndarray, code: Rans | None = None) -> bytes:
    data = (code or Rans()).encode(matrix)
    decoded, used = Rans().decode(data + b"garbage", *matrix.shape)
    assert used == len(data) and np.array_equal(decoded, matrix)
    return data


@given(matrices(600))
@settings(laws, max_examples=60)
def test_the_slow_decoder_of_the_document_agrees(matrix):
    data = round_trip(matrix)
    if matrix.size:
        assert slow.rans(data, *matrix.shape) == matrix.reshape(-1).tolist()


def test_the_slow_decoder_agrees_on_bands_classes_and_escapes(monkeypatch):
    monkeypatch.setattr(fitting, "BAND", 2**15)
    matrix = spread(2, 331, 199, 2.0, 1.0)
    matrix[[0, 170, 330], [5, 6, 198]] = INT32.min, INT32.max, 99_999
    data = round_trip(matrix)
    span, _, row_classes, column_classes, bands, escapes = HEADER.unpack_from(data)
    assert bands == 2 and min(row_classes, column_classes) > 3 and escapes >= 3
    assert slow.rans(data, *matrix.shape) == matrix.reshape(-1).tolist()


def with_fields(data: bytes, **change: int) -> bytes:
    """Return the bytes with other header fields."""
    names = ("span", "form", "row_classes", "column_classes", "bands", "escape_count")
    fields = dict(zip(names, HEADER.unpack_from(data), strict=True)) | change
    return HEADER.pack(*fields.values()) + data[HEADER.size :]


def test_streams_are_those_of_the_document():
    matrix = spread(1, 40, 50, 2.0, 0.0)
    data = Rans(contexts=False).encode(matrix)
    span, form, *_ = HEADER.unpack_from(data)
    (size,) = struct.unpack_from("<I", data, HEADER.size)
    tables, at = slow.rans_tables(data, HEADER.size + 4, span, form, 1)
    words, state = [], 2**32
    for z in reversed(matrix.reshape(-1).tolist()):
        state = slow.push(words, state, z + span, tables[0])
    words += [state % 2**32, state >> 32]
    assert data[at:] == struct.pack(f"<{size}I", *words)


@pytest.mark.parametrize("value", [0, 1, -7, INT32.min, INT32.max])
def test_a_constant_takes_a_fraction_of_a_bit(value):
    data = round_trip(np.full((100, 1000), value, np.int32))
    # far from 0 it escapes, at a bit each
    assert 8 * len(data) / 100_000 < (0.03 if abs(value) < 9 else 1.01)


def test_lopsided_integers_are_listed():
    matrix = np.minimum(np.random.default_rng(0).geometric(0.3, (60, 70)), 9).astype(np.int32)
    data = round_trip(matrix)
    assert HEADER.unpack_from(data)[1] == 1
    assert slow.rans(data, *matrix.shape) == matrix.reshape(-1).tolist()


def test_empty_classes_in_between():
    narrow, wide = gaussian(0, 50 * 200, 0.4), gaussian(1, 50 * 200, 60.0)
    matrix = np.concatenate([narrow, wide]).reshape(100, 200)
    data = round_trip(matrix)
    assert HEADER.unpack_from(data)[2] > 4
    assert slow.rans(data, *matrix.shape) == matrix.reshape(-1).tolist()


@pytest.mark.parametrize("bands", [1, 2, 3, 7])
def test_borders_of_bands(monkeypatch, bands):
    for rows in (7 * 60, 7 * 60 - 1, 7 * 60 + 1):
        matrix = spread(rows, rows, 1100, 1.5, 0.7)
        monkeypatch.setattr(fitting, "BAND", matrix.size / bands)
        assert HEADER.unpack_from(round_trip(matrix))[4] == bands


def test_same_input_same_bytes():
    matrix = spread(1, 99, 101, 2.1, 0.5)
    assert Rans().encode(matrix) == Rans().encode(np.asfortranarray(matrix))


EXAMPLE = spread(2, 64, 80, 1.5, 0.8)
EXAMPLE[[3, 40], [5, 70]] = 10_000, -10_000
DATA = Rans().encode(EXAMPLE)
FIELDS = HEADER.unpack_from(DATA)


def test_the_example_has_everything():
    span, form, row_classes, column_classes, bands, escapes = FIELDS
    assert min(row_classes, column_classes) > 2 and escapes >= 2 and form == 0 and bands == 1


@pytest.mark.parametrize(
    "field, value",
    [
        *[("span", value) for value in (0, FIELDS[0] - 1, FIELDS[0] + 1, 2**15, 2**16 - 1)],
        *[("form", value) for value in (1, 2, 255)],
        *[("row_classes", value) for value in (0, 1, FIELDS[2] - 1, FIELDS[2] + 1, 33, 255)],
        *[("column_classes", value) for value in (0, 1, FIELDS[3] - 1, FIELDS[3] + 1, 33, 255)],
        *[("bands", value) for value in (0, 2, 64, 2**16 - 1)],
        *[("escape_count", value) for value in (0, 1, FIELDS[5] + 1, EXAMPLE.size, 2**32 - 1)],
    ],
)
def test_headers_that_break_a_rule_are_refused(field, value):
    with pytest.raises(CorruptError):
        Rans().decode(with_fields(DATA, **{field: value}), *EXAMPLE.shape)


def test_a_few_bytes_do_not_make_many_large_tables():
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError, match="are too many"):
            Rans().decode(with_fields(DATA, span=2**15 - 1), *EXAMPLE.shape)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_small_bands_are_refused():
    data = with_fields(DATA, bands=2)[: HEADER.size + 4] + bytes(4) + DATA[HEADER.size + 4 :]
    with pytest.raises(CorruptError, match="do not make 2 bands"):
        Rans().decode(data, *EXAMPLE.shape)


@pytest.mark.parametrize("count", [0, 1, 999, 1001])
def test_another_number_of_escapes_is_refused(count):
    # equal escaped integers take no bits, so that only their number can be wrong
    data = Rans().encode(np.tile(np.array([0, INT32.max], np.int32), (10, 100)))
    assert HEADER.unpack_from(data)[5] == 1000
    with pytest.raises(CorruptError, match="escape|words|stream"):
        Rans().decode(with_fields(data, escape_count=count), 10, 200)


def test_escaped_integers_beyond_int32_are_refused():
    escaped = struct.pack("<iB", -10_000, 15)
    assert DATA.count(escaped) == 1
    with pytest.raises(CorruptError, match="exceeds int32"):
        bad = DATA.replace(escaped, struct.pack("<iB", INT32.max - 9999, 15))
        Rans().decode(bad, *EXAMPLE.shape)
    with pytest.raises(CorruptError, match="escape_width 33"):
        Rans().decode(DATA.replace(escaped, struct.pack("<iB", -10_000, 33)), *EXAMPLE.shape)


@pytest.mark.parametrize("words", [-1, 1, 2**32 - 1, 0, 1 - 2**31])
def test_streams_of_another_size_are_refused(words):
    (size,) = struct.unpack_from("<I", DATA, HEADER.size)
    changed = struct.pack("<I", (size + words if words else 0) % 2**32)
    for rest in (b"", bytes(4), b"\1\0\0\0"):
        with pytest.raises(CorruptError):
            head = DATA[: HEADER.size] + changed
            Rans().decode(head + DATA[HEADER.size + 4 :] + rest, *EXAMPLE.shape)


def test_any_change_of_a_stream_is_refused_or_changes_the_integers():
    (size,) = struct.unpack_from("<I", DATA, HEADER.size)
    rng, refused = np.random.default_rng(0), 0
    for _ in range(400):
        bad = bytearray(DATA)
        bad[len(DATA) - 4 * size + rng.integers(4 * size)] ^= 1 << rng.integers(8)
        try:
            decoded, _ = Rans().decode(bytes(bad), *EXAMPLE.shape)
            assert not np.array_equal(decoded, EXAMPLE)
        except CorruptError:
            refused += 1
    # all but one in 2^32 should end with another state
    assert refused == 400


@pytest.mark.parametrize("at", ["first", "middle", "last"])
def test_a_missing_or_surplus_word_is_refused(at):
    (size,) = struct.unpack_from("<I", DATA, HEADER.size)
    words = list(struct.unpack(f"<{size}I", DATA[-4 * size :]))
    place = {"first": 0, "middle": size // 2, "last": size - 1}[at]
    for changed in (words[:place] + words[place + 1 :], words[:place] + [7] + words[place:]):
        head = DATA[: HEADER.size] + struct.pack("<I", len(changed))
        body = DATA[HEADER.size + 4 : -4 * size]
        with pytest.raises(CorruptError):
            data = head + body + struct.pack(f"<{len(changed)}I", *changed)
            Rans().decode(data, *EXAMPLE.shape)


@pytest.mark.parametrize(
    "shape", [(64, 79), (63, 80), (80, 64), (1, 64 * 80), (65, 80), (2**40, 1)]
)
def test_another_shape_is_refused(shape):
    with pytest.raises(CorruptError):
        Rans().decode(DATA, *shape)

import json
import struct
import zlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane.codes import (
    CODES,
    CorruptError,
    Dense,
    Huffman,
    Rans,
    fit,
    histogram,
    ladder_steps,
    record,
    round_base,
    round_step,
)
from nearplane.codes.header import LAYOUT
from nearplane.codes.ladder import ROW_WIDTH
from nearplane.types import value
from tests.codes import slow
from tests.codes.draw import gaussian, integers, outliers

CODERS = list(CODES.values())


def matrix(seed: int, rows: int, columns: int, sigma: float = 2.0) -> torch.Tensor:
    return torch.from_numpy(gaussian(seed, rows * columns, sigma)).reshape(rows, columns)


def some_steps(shape: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(shape[1])
    return round_step(torch.rand(shape, generator=generator) + 0.01)


@st.composite
def parts(draw):
    """Return (code, step, group_size, outliers, coder, row_step, minimum) of a small matrix."""
    rows, columns = draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 7, 63, 64, 100, 129]))
    cells = draw(integers(most=rows * columns))
    code = torch.zeros(rows * columns, dtype=torch.int32)
    code[: len(cells)] = torch.from_numpy(cells[: len(code)])
    group_size = draw(st.sampled_from([1, 3, 32, columns]).map(lambda size: min(size, columns)))
    shapes = [(rows, -(-columns // group_size))]
    if group_size == columns:
        shapes += [(1, 1), (1, columns)]
    step = some_steps(draw(st.sampled_from(shapes)))
    sparse = draw(st.sampled_from([None, 0.0, 0.1]))
    if sparse is not None:
        sparse = outliers(rows, rows, columns, sparse)
    row_step = None
    ladder = step.shape == (1, columns) and group_size == columns and sparse is None
    if ladder and draw(st.booleans()):
        row_step = ladder_steps(torch.exp2(torch.linspace(-3, 3, rows)), ROW_WIDTH)[:, None]
    minimum = None
    if step.shape == shapes[0] and sparse is None and row_step is None and draw(st.booleans()):
        minimum = some_steps(shapes[0]).flip(1) - 0.5
    coder = draw(st.sampled_from(CODERS))
    return code.reshape(rows, columns), step, group_size, sparse, coder, row_step, minimum


@given(parts())
@settings(max_examples=80)
def test_a_record_comes_back(p):
    code, step, group_size, sparse, coder, row_step, minimum = p
    packed, code_bytes = record.pack(*p)
    back = record.unpack(packed, *code.shape)
    assert torch.equal(back.code, code) and torch.equal(back.step, step)
    assert back.group_size == group_size
    assert (back.row_step is None) == (row_step is None)
    if row_step is not None:
        assert torch.equal(back.row_step, row_step)
    assert (back.minimum is None) == (minimum is None)
    if minimum is not None:
        assert torch.equal(back.minimum, minimum)
    assert (back.outliers is None) == (sparse is None)
    if sparse is not None:
        for name in ("start", "column", "value"):
            assert torch.equal(getattr(back.outliers, name), getattr(sparse, name))
    header = record.inspect(packed)
    assert (header.rows, header.columns) == code.shape and header.code_bytes == code_bytes
    assert header.step_shape == step.shape and header.record_bytes == len(packed)


@given(parts())
@settings(max_examples=40)
def test_the_slow_decoder_of_the_document_agrees(p):
    code, step, group_size, sparse, _, row_step, minimum = p
    packed, _ = record.pack(*p)
    expected = value(code, step.double(), group_size, sparse, row_step, minimum)
    assert slow.record(bytes(packed.numpy())) == expected.tolist()


def test_packing_accepts_any_layout_and_type_of_tensor():
    code = matrix(0, 20, 30).T
    packed, _ = record.pack(code, torch.full((1, 1), 0.1, dtype=torch.float32), 20)
    assert torch.equal(record.unpack(packed).code, code)
    half, _ = record.pack(code, torch.ones(1, 20, dtype=torch.bfloat16), 20)
    assert torch.equal(record.unpack(bytes(half.numpy())).step, torch.ones(1, 20))
    shifted = torch.cat([torch.zeros(1, dtype=torch.uint8), packed])[1:]
    assert torch.equal(record.unpack(shifted).code, code)


def test_same_matrix_same_bytes():
    code, step = matrix(1, 30, 70), some_steps((30, 3))
    one, two = (record.pack(code.clone(), step.clone(), 32)[0] for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("shape, group", [((1, 1), 5), ((1, 10), 5), ((4, 2), 10), ((3, 2), 5)])
def test_steps_that_fit_no_form_are_a_value_error(shape, group):
    with pytest.raises(ValueError, match="fit no form"):
        record.pack(matrix(0, 4, 10), torch.ones(shape), group)


@pytest.mark.parametrize("group_size", [0, -1, 11])
def test_impossible_groups_are_a_value_error(group_size):
    with pytest.raises(ValueError, match="group_size"):
        record.pack(matrix(0, 4, 10), torch.ones(4, 1), group_size)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_an_empty_matrix_is_a_value_error(shape):
    with pytest.raises(ValueError):
        record.pack(torch.zeros(shape, dtype=torch.int32), torch.ones(1, 1), shape[1])


def test_steps_that_float32_cannot_hold_are_a_value_error():
    for step in (0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError):
            record.pack(matrix(0, 2, 2), torch.tensor([[step]], dtype=torch.float64), 2)


def test_outliers_of_another_matrix_are_a_value_error():
    with pytest.raises(ValueError, match="5 rows for a matrix of 4"):
        record.pack(matrix(0, 4, 10), torch.ones(1, 1), 10, outliers(0, 5, 10, 0.1))
    with pytest.raises(ValueError, match="columns"):
        record.pack(matrix(0, 4, 5), torch.ones(1, 1), 5, outliers(0, 4, 10, 0.9))


def test_steps_on_a_ladder_come_back():
    wanted = torch.exp2(torch.linspace(-2, 2, 100).double())
    step = ladder_steps(wanted)[None] * round_base(0.0137)
    packed, _ = record.pack(matrix(0, 20, 100), step, 100)
    header = record.inspect(packed)
    assert header.step_type == 16 + 5 and header.step_bytes == record.step_bytes(step) == 6 + 63
    back = record.unpack(packed)
    assert torch.equal(back.step, step)
    expected = value(back.code, step.double(), 100, None)
    assert slow.record(bytes(packed.numpy())) == expected.tolist()


def small(coder=CODERS[0]) -> bytes:
    """Return a record with every section in it."""
    sparse = outliers(3, 4, 11, 0.1)
    return bytes(record.pack(matrix(2, 4, 11), some_steps((4, 3)), 4, sparse, coder)[0].numpy())


@pytest.mark.parametrize("coder", CODERS)
def test_every_flipped_bit_is_refused(coder):
    data = small(coder)
    for bit in range(8 * len(data)):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptError):
            record.unpack(bytes(bad))


@pytest.mark.parametrize("coder", CODERS)
def test_every_truncation_and_any_extension_is_refused(coder):
    data = small(coder)
    for size in range(len(data)):
        for read in (record.unpack, record.inspect):
            with pytest.raises(CorruptError):
                read(data[:size])
    for extra in (b"\0", data):
        with pytest.raises(CorruptError):
            record.unpack(data + extra)


def signed(body: bytes) -> bytes:
    """Return `body` with its right CRC, as an attacker would."""
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize("coder", CODERS)
@given(seed=st.randoms(use_true_random=False))
@settings(max_examples=300)
def test_altered_records_with_a_right_crc_do_no_harm(coder, seed):
    body = bytearray(small(coder)[:-4])
    for _ in range(seed.randint(1, 4)):
        body[seed.randrange(len(body))] = seed.choice([0, 1, 255, seed.randrange(256)])
    try:
        back = record.unpack(signed(bytes(body)))
    except CorruptError:
        return
    header = record.inspect(signed(bytes(body)))
    assert back.code.shape == (header.rows, header.columns)
    assert torch.isfinite(back.step).all()
    # what was accepted can be stored again
    record.pack(back.code, back.step, back.group_size, back.outliers, Huffman())


def altered(**change) -> bytes:
    header = replace(record.inspect(small()), **change)
    return signed(header.to_bytes() + small()[LAYOUT.size : -4])


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 2**31 - 1, "columns": 2**31 - 1, "group_size": 2**31 - 1},
        {"rows": 2**32 - 1},
        {"rows": 0},
        {"columns": 0, "group_size": 0},
        {"rows": 2**31 - 1, "code_bytes": 2**62},
        {"code_bytes": 2**64 - 1},
        {"outlier_bytes": 2**32 - 1},
        {"outlier_bytes": 0},
        {"group_size": 0},
        {"group_size": 12},
        {"step_form": 0},
        {"step_form": 3},
        {"step_type": 3},
        {"step_type": 16},
        {"step_type": 25},
        {"code_tag": 0},
        {"code_tag": 255},
        {"code_tag": 2},
        {"code_tag": 3},
        {"code_tag": 3, "rows": 2**31 - 1},
        {"rows": 5},
    ],
)
def test_promises_that_cannot_be_kept_are_refused(change):
    with pytest.raises(CorruptError):
        record.unpack(altered(**change))


@pytest.mark.parametrize("change", [{"rows": 2**31 - 1}, {"group_size": 4}])
def test_a_header_alone_shows_what_one_step_cannot_mean(change):
    data = bytes(record.pack(matrix(2, 4, 11), torch.ones(1, 1), 11)[0].numpy())
    header = replace(record.inspect(data), **change)
    with pytest.raises(CorruptError):
        record.inspect(header.to_bytes() + data[LAYOUT.size :])


def test_codes_must_fill_their_section():
    header, data = record.inspect(small()), small()[:-4]
    at = LAYOUT.size + header.step_bytes + header.code_bytes
    longer = replace(header, code_bytes=header.code_bytes + 1).to_bytes()
    with pytest.raises(CorruptError, match="codes end after"):
        record.unpack(signed(longer + data[LAYOUT.size : at] + b"\0" + data[at:]))
    longer = replace(header, outlier_bytes=header.outlier_bytes + 1).to_bytes()
    with pytest.raises(CorruptError, match="outliers end after"):
        record.unpack(signed(longer + data[LAYOUT.size :] + b"\0"))


def test_steps_that_are_not_finite_are_refused():
    body = bytearray(small()[:-4])
    body[LAYOUT.size : LAYOUT.size + 2] = struct.pack("<e", float("inf"))
    with pytest.raises(CorruptError, match="step is not finite"):
        record.unpack(signed(bytes(body)))


def test_another_magic_or_version_is_refused():
    body = small()[:-4]
    for bad in (b"npqr" + body[4:], body[:4] + b"\2" + body[5:]):
        with pytest.raises(CorruptError):
            record.unpack(signed(bad))


def test_another_shape_than_expected_is_refused():
    assert record.unpack(small(), 4, 11).code.shape == (4, 11)
    for rows, columns in ((5, None), (None, 12), (11, 4)):
        with pytest.raises(CorruptError, match="a record of 4 x 11"):
            record.unpack(small(), rows, columns)


@pytest.mark.parametrize("step_shape", [(1, 1), (1, 1000)])
def test_the_price_is_near(step_shape):
    code = matrix(4, 300, 1000, 2.1)
    packed, _ = record.pack(code, some_steps(step_shape), 1000)
    count = step_shape[0] * step_shape[1]
    priced = record.price(*histogram(code.numpy().reshape(-1)), step_count=count)
    # 147 lanes: a bit each for their sizes, and padding that is not quite the mean
    assert abs(priced - len(packed)) <= 147 / 8 + 13


def test_the_likely_size_of_rans_is_near():
    code, step = matrix(4, 300, 1000, 2.1), some_steps((1, 1000))
    packed, _ = record.pack(code, step, 1000, None, Rans())
    likely = record.record_bytes(record.step_bytes(step), fit(code.numpy()).likely_bytes(300_000))
    assert abs(likely - len(packed)) <= 8


def test_a_rans_record_may_hold_more_integers_than_bits():
    code = torch.zeros(300, 1000, dtype=torch.int32)
    packed, code_bytes = record.pack(code, torch.ones(1, 1), 1000, None, Rans())
    assert 8 * code_bytes < code.numel()
    assert torch.equal(record.unpack(packed).code, code)
    # the same promise in another code is refused
    header = replace(record.inspect(packed), code_tag=1)
    with pytest.raises(CorruptError, match="cannot be in"):
        record.inspect(header.to_bytes() + bytes(packed.numpy())[LAYOUT.size :])


def test_the_directory_entry_of_safetensors():
    entry = {"dtype": "U8", "shape": [1234567], "data_offsets": [123456789, 123456789]}
    line = json.dumps({"x" * 39: entry}, separators=(",", ":"))
    assert record.ENTRY_BYTES == len(line) - 2 + 1  # without the braces, with a comma


def test_dense_bits_of_ssqr():
    code = matrix(5, 64, 256).clamp(-4, 3)
    packed, code_bytes = record.pack(code, some_steps((64, 2)), 128, coder=Dense(3))
    assert code_bytes == 64 * 256 * 3 // 8 + 5
    assert len(packed) == 36 + 64 * 2 * 2 + code_bytes


@pytest.mark.parametrize("group_size", [1, 2])
def test_factors_of_rows_go_with_one_step_a_column(group_size):
    """Of a single row, groups of one column have as many steps as columns have."""
    code, step = torch.ones(1, 2, dtype=torch.int32), torch.ones(1, 2)
    row_step = torch.ones(1, 1)
    if group_size == 2:
        data, _ = record.pack(code, step, group_size, None, Huffman(), row_step)
        assert record.unpack(data).row_step is not None
        return
    with pytest.raises(ValueError, match="one step for a column"):
        record.pack(code, step, group_size, None, Huffman(), row_step)


def test_minima_go_with_steps_of_groups_and_without_outliers():
    code, step = matrix(0, 4, 10), some_steps((4, 2))
    for own, size, sparse, minimum in (
        (torch.ones(1, 10), 10, None, torch.ones(1, 10)),
        (step, 5, None, step[:, :1]),
        (step, 5, outliers(0, 4, 10, 0.5), step),
    ):
        with pytest.raises(ValueError, match="minima go with"):
            record.pack(code, own, size, sparse, minimum=minimum)
    with pytest.raises(ValueError, match="not exact in float32"):
        record.pack(code, step, 5, minimum=step.double() + 1e-12)

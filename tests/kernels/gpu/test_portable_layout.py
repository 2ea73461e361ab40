"""Layouts of the Triton kernels: they have the integers, steps and outliers of a record."""

import math
import subprocess
import sys
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nearplane import codes
from nearplane.kernels.gpu.header import read_head
from nearplane.kernels.gpu.portable import geometry as shapes
from nearplane.kernels.gpu.portable import layout as layouts
from tests.codes.draw import laws, outliers
from tests.golden import record_cases

CPU = torch.device("cpu")


def packed(record: Tensor) -> Tensor | None:
    with patch.object(layouts, "MOST_GROWTH", math.inf):
        return layouts.pack(record, CPU)


@st.composite
def records(draw) -> Tensor:
    rows, columns = draw(st.integers(1, 140)), draw(st.integers(1, 300))
    bits, seed = draw(st.integers(1, 8)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    code = rng.integers(0, 2**bits, (rows, columns))
    code[0, 0] = 0  # what the record's codes count from
    code -= draw(st.sampled_from([0, 2 ** (bits - 1), 9]))
    kind = draw(st.sampled_from(["scalar", "column", "group"]))
    size = draw(st.integers(1, columns)) if kind == "group" else columns
    shape = {"scalar": (1, 1), "column": (1, columns), "group": (rows, -(-columns // size))}[kind]
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    step = torch.from_numpy(rng.normal(size=shape)).to(dtype).float()
    step[rng.random(shape) < 0.1] = draw(st.sampled_from([0.0, -0.0, 1.0]))
    rate = draw(st.sampled_from([None, 0.0, 0.01, 0.3, 1.0]))
    sparse = None if rate is None else outliers(seed % 2**31, rows, columns, rate)
    if sparse is not None and len(sparse.value):
        sparse.value[0] = draw(st.sampled_from([0.0, -0.0, 65504.0]))
    return codes.pack(torch.from_numpy(code).int(), step, size, sparse, codes.Dense(bits))[0]


@given(records())
@settings(laws, max_examples=60)
def test_a_record_comes_back(record):
    layout = packed(record)
    assert layout is not None and layout.dtype == torch.uint8
    assert torch.equal(layouts.unpack(layout), record)
    # a copy has to be read, not remembered
    assert torch.equal(layouts.unpack(layout.clone()), record)


@pytest.mark.parametrize("golden", record_cases.CASES, ids=lambda made: made.__name__)
def test_golden_records_come_back_or_are_left_to_others(golden):
    record = torch.frombuffer(bytearray(golden().pack()), dtype=torch.uint8)
    layout = packed(record)
    if layout is None:
        held = codes.unpack(record)
        dense = codes.inspect(record).code_tag == codes.Dense.tag and held.minimum is None
        assert not dense or held.code.long().abs().max() > 128
    else:
        assert torch.equal(layouts.unpack(layout), record)


@given(
    st.integers(1, 8),
    st.integers(1, 9000),
    st.integers(1, 9000),
    st.integers(1, 9000),
    st.booleans(),
)
@settings(laws, max_examples=300)
def test_the_shape_of_a_layout(bits, rows, columns, size, whole):
    size = columns if whole else min(size, columns)
    made = shapes.geometry(bits, rows, columns, size)
    assert made.fields * bits == made.words * shapes.WORD
    assert made.joints * made.join * made.fields >= size
    assert made.chunks * shapes.VECTOR // made.join >= made.groups * made.joints
    # chunks of a run belong to one group
    assert made.join < shapes.VECTOR or made.joints % made.run == 0
    assert made.tiles * shapes.LANES >= rows
    assert shapes.first_bit(bits) + bits * shapes.window_of(bits) == shapes.MANTISSA


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("size", [64, 128, 4096])
def test_no_bit_is_wasted(bits, size):
    made = shapes.geometry(bits, 4096, 4096, size)
    assert 32 * made.word_count == bits * 4096 * 4096 and made.is_whole


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_layout_takes_little_more_than_its_record(bits):
    code = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (256, 1024))
    step, sparse = torch.randn(256, 8).half().float(), outliers(1, 256, 1024, 0.01)
    record = codes.pack(torch.from_numpy(code).int(), step, 128, sparse, codes.Dense(bits))[0]
    layout = layouts.pack(record, CPU)
    # a slot holds 32 bits of one outlier of each row, and the fullest of 32 rows says how many
    assert layout is not None
    assert 8 * (len(layout) - len(record)) / code.size < 0.5


def test_what_kernels_would_be_no_gain_for_is_left_to_others():
    wide = torch.from_numpy(np.random.default_rng(0).integers(-500, 500, (40, 70))).int()
    one = torch.ones(1, 1)
    assert layouts.pack(codes.pack(wide, one, 70, None, codes.Dense())[0], CPU) is None
    assert layouts.pack(codes.pack(wide, one, 70)[0], CPU) is None
    far = torch.full((40, 70), 254, dtype=torch.int32)
    assert layouts.pack(codes.pack(far, one, 70, None, codes.Dense(2))[0], CPU) is None
    single = torch.ones(300, 300)  # a step for every weight: units of 32 columns hold one
    code = torch.ones(300, 300, dtype=torch.int32)
    assert layouts.pack(codes.pack(code, single, 1, None, codes.Dense(3))[0], CPU) is None


def test_more_columns_than_16_bits_count():
    columns = shapes.SPAN + 10
    code, sparse = torch.ones(2, columns, dtype=torch.int32), outliers(0, 2, columns, 0.001)
    record = codes.pack(code, torch.ones(2, 1), columns, sparse, codes.Dense(2))[0]
    layout = packed(record)
    assert layout is not None and layouts.geometry_of(read_head(layout)).stripes == 2
    assert torch.equal(layouts.unpack(layout), record)


def test_triton_is_not_imported_before_it_is_needed():
    """A process of its own: this one may have it."""
    modules = "portable.linear, nearplane.kernels.gpu.nearest_plane"
    check = f"import sys, nearplane.kernels.gpu.{modules}; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)

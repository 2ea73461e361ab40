"""Bytes that are no layout are refused, or safe to multiply by. fuzz.cpp goes deeper."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nearplane import codes
from nearplane.kernels import cpu
from nearplane.kernels.cpu import layout as layouts
from nearplane.kernels.cpu.linear import linear
from tests.codes.draw import laws
from tests.kernels.forms import laid_out, packed
from tests.kernels.test_cpu_shapes import integers, small_steps, some_outliers

ROWS, COLUMNS = 40, 70
EXTREMES = [0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 24, 2**32 - 1]
HEADER = 400  # bytes, at least


def sound() -> dict[str, Tensor]:
    some = some_outliers(0, ROWS, COLUMNS, 0.05)
    code, wide = integers(0, ROWS, COLUMNS, 3), integers(0, ROWS, COLUMNS, 900)
    columns = torch.rand(1, COLUMNS, generator=torch.Generator().manual_seed(0)).half().float()
    records = {
        "lanes": packed(code, torch.tensor([[0.5]]), None, some),
        "lanes and planes": packed(wide, torch.tensor([[0.5]])),
        "column steps": packed(code, columns),
        "groups": packed(code, small_steps(0, ROWS, 5), 16, some),
        "two planes": packed(integers(0, ROWS, COLUMNS, 100), small_steps(0, ROWS, 1), COLUMNS),
    }
    return {name: laid_out(record).layout for name, record in records.items()}


SOUND = sound() if cpu.available() else {}


def use(layout: Tensor) -> None:
    """Do all that a layer does with a layout, on every instruction set; refuse it or survive."""
    try:
        layouts.ensure_checked(layout)
    except ValueError as error:
        assert str(error).startswith(f"these {len(layout)} bytes are no layout")
        return
    head = layouts.read_header(layout)
    if head.rows * head.columns > 2**16:
        return
    for name in cpu.available():
        cpu.choose(name)
        for batch in (1, 3):
            x = torch.ones(batch, head.columns)
            assert linear(x, layout, head.rows).shape == (batch, head.rows)
        assert layouts.weight(layout, torch.bfloat16).shape == (head.rows, head.columns)
        try:
            layouts.unpack(layout)
        # what is decoded safely may still be no matrix, such as one of steps that are not finite
        except (ValueError, OverflowError, codes.CorruptError):
            pass


@pytest.mark.parametrize("name", SOUND)
@given(
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3),
    fields=st.lists(st.tuples(st.integers(0, HEADER // 4), st.sampled_from(EXTREMES)), max_size=1),
    part=st.sampled_from([1.0, 1.0, 1.0, 0.9, 0.5, 0.01, 0.0]),
)
@settings(laws, max_examples=120)
def test_damaged_layouts_are_refused_or_harmless(name, places, fields, part):
    bytes_ = SOUND[name].numpy().copy()
    for at, value in places:
        bytes_[int(at * len(bytes_))] = value
    for at, value in fields:
        bytes_.view(np.uint32)[at] = value
    bytes_ = bytes_[: int(part * len(bytes_))].copy()
    if part < 1 and len(bytes_) >= 16:
        bytes_[8:16].view(np.uint64)[0] = len(bytes_)
    use(torch.from_numpy(bytes_))


@given(data=st.binary(max_size=2000))
@laws
def test_any_bytes_are_refused(data):
    sweep_state = b"NPLC" + (1).to_bytes(4, "little") + len(data).to_bytes(8, "little") + data[16:]
    for bytes_ in (data, sweep_state):
        use(torch.from_numpy(np.frombuffer(bytes_, np.uint8).copy()))


def test_tensors_that_are_no_row_of_bytes_are_refused():
    layout = SOUND["lanes"]
    for wrong in (layout[None], layout.to(torch.int32), layout.repeat(2)[::2]):
        # TypeError: jaxtyping, which watches the tests, is faster
        with pytest.raises((ValueError, TypeError)):
            layouts.ensure_checked(wrong)


def test_every_tensor_is_checked_for_itself():
    """Also one in the place in memory of another that was sound."""
    layout = SOUND["lanes"].clone()
    layouts.ensure_checked(layout)
    again = layout.view(-1)
    assert again.data_ptr() == layout.data_ptr()
    again[:4] = 0
    with pytest.raises(ValueError, match="the header is wrong"):
        layouts.ensure_checked(again)


def test_sound_layouts_pass():
    for layout in SOUND.values():
        use(layout.clone())
        assert torch.equal(layouts.unpack(layout.clone()), layouts.unpack(layout))
        assert codes.inspect(layouts.unpack(layout)).rows == ROWS

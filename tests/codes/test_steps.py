import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from nearplane.codes import steps
from nearplane.codes.corrupt import CorruptError

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
arrays = npst.arrays(np.float32, npst.array_shapes(max_dims=1, max_side=20), elements=finite)


@given(arrays)
def test_every_bit_of_every_step_is_preserved(step):
    kind, data = steps.encode(step)
    back = steps.decode(data, kind, len(step))
    assert back.view(np.uint32).tolist() == step.view(np.uint32).tolist()


@pytest.mark.parametrize("bit", range(16))
def test_bfloat16_holds_no_lower_bit(bit):
    step = np.array([0x71490000 | 1 << bit], np.uint32).view(np.float32)
    kind, data = steps.encode(step)
    assert kind == steps.FLOAT32 and steps.decode(data, kind, len(step)) == step


@given(npst.arrays(np.float32, (2, 3), elements=st.floats(-(2.0**126), 2.0**126, width=32)))
def test_rounded_steps_take_16_bits_and_stay(step):
    rounded = steps.round_step(torch.from_numpy(step))
    kind, data = steps.encode(rounded.numpy().reshape(-1))
    # or fewer, where they happen to lie on a ladder
    assert len(data) <= 2 * step.size
    assert torch.equal(steps.round_step(rounded), rounded)


@pytest.mark.parametrize(
    "step, kind",
    [
        ([0.5, -0.25], steps.FLOAT16),
        ([0.1, 0.3], steps.FLOAT16),
        ([1e-6, 0.3], steps.BFLOAT16),
        ([0.0, 65519.0], steps.BFLOAT16),
    ],
)
def test_float16_where_its_normal_range_holds_all(step, kind):
    rounded = steps.round_step(torch.tensor([step]))
    # half a unit in the last place of 11 or 8 bits, relative to the smallest such number
    limit = 2.0**-11 if kind == steps.FLOAT16 else 2.0**-8
    assert torch.allclose(rounded, torch.tensor([step]), rtol=limit, atol=0)
    short = torch.float16 if kind == steps.FLOAT16 else torch.bfloat16
    assert torch.equal(rounded.to(short).float(), rounded)


def test_a_matrix_s_only_step_is_rounded_like_others():
    """Formats of other programs hold steps of 16 bits; a record holds any."""
    step = torch.tensor([[0.1]])
    assert torch.equal(steps.round_step(step), step.half().float())
    assert steps.encode(step.numpy().reshape(-1))[0] == steps.FLOAT32


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_steps_are_finite(bad):
    with pytest.raises(ValueError):
        steps.round_step(torch.tensor([[1.0, bad]]))
    with pytest.raises(ValueError):
        steps.encode(np.array([1.0, bad], np.float32))
    for kind, data in ((0, np.float32(bad)), (1, np.float16(bad))):
        with pytest.raises(CorruptError):
            steps.decode(data.tobytes(), kind, 1)
    with pytest.raises(CorruptError):
        steps.decode(np.float32(bad).tobytes()[2:], 2, 1)


def test_a_step_beyond_bfloat16_is_a_value_error():
    with pytest.raises(ValueError):
        steps.round_step(torch.full((1, 2), torch.finfo(torch.float32).max))


@pytest.mark.parametrize("kind", [3, 15, 25, 255])
def test_unknown_types_are_refused(kind):
    with pytest.raises(CorruptError, match="unknown"):
        steps.stored_bytes(kind, 1)

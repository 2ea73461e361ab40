"""Steps on a ladder: exact round trips, at most 1.13 from what was wished, bad bytes refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane.codes import CorruptError, ladder, ladder_steps, round_base, steps

laws = settings(max_examples=200, deadline=None, derandomize=True)
positive = st.floats(1e-6, 1e6)


@laws
@given(st.lists(positive, min_size=1, max_size=50))
def test_rungs_are_near(wanted):
    """In ratio: the widest gap is 10/8, and the middle of it √1.25 = 1.118 away."""
    wanted = torch.tensor(wanted, dtype=torch.float64)
    ratio = ladder_steps(wanted) / wanted
    inside = wanted * 2**60 > wanted.max()
    assert (ratio[inside] <= 1.13).all() and (ratio[inside] >= 1 / 1.13).all()


@laws
@given(st.lists(st.integers(-40, 40), min_size=8, max_size=60), st.floats(1e-4, 1e4))
def test_round_trip(rungs, base):
    """base · rung is exact in float32, so every bit comes back."""
    step = np.float32(round_base(base)) * ladder.rung_value(np.array(rungs))
    kind, data = steps.encode(step)
    assert steps.stored_bytes(kind, len(step)) == len(data) <= 2 * len(step)
    assert np.array_equal(steps.decode(data, kind, len(step)).view(np.uint32), step.view(np.uint32))


def test_few_bits_a_column():
    """2^WIDEST rungs at most: 6 bytes and, for 3.6 octaves, four bits a column."""
    wanted = torch.exp2(torch.linspace(-1.8, 1.8, 1000).double())
    kind, data = steps.encode((ladder_steps(wanted) * round_base(0.0137)).numpy())
    assert kind == steps.LADDER + 4 and len(data) == 6 + 500


def test_what_lies_between_rungs_is_stored_otherwise():
    step = torch.rand(100, generator=torch.Generator().manual_seed(0)).numpy() + 1
    assert ladder.encode(step) is None
    assert steps.encode(step)[0] == steps.FLOAT32
    assert ladder.encode(np.array([1, -1, 2], np.float32)) is None
    assert ladder.encode(np.array([0.5], np.float32)) is None


def test_spreads_beyond_the_ladder_are_cut():
    wanted = torch.tensor([2.0**-100, 1.0, 2.0**40])
    found = ladder_steps(wanted)
    assert found[2] == 2.0**40 and found[1] == 1.0 and found[0] > 2.0**-24
    assert ladder.encode(found.numpy()) is not None


@pytest.mark.parametrize("base", [0.0, -1.0, np.inf, np.nan])
def test_impossible_bases_are_refused(base):
    data = ladder.HEADER.pack(base, 0) + bytes(4)
    with pytest.raises(CorruptError, match="base|finite"):
        steps.decode(data, steps.LADDER + 4, 8)


def test_overflow_and_unknown_types_are_refused():
    data = ladder.HEADER.pack(1e38, 32000) + bytes(4)
    with pytest.raises(CorruptError, match="not finite"):
        steps.decode(data, steps.LADDER + 4, 8)
    for kind in (3, 15, 25, 255):
        with pytest.raises(CorruptError, match="unknown"):
            steps.stored_bytes(kind, 8)

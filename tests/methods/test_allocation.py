"""Allocation: the mean is met from below, slopes are equal, floors and limits are kept."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane.methods.allocation import (
    HIGHEST,
    LOWEST,
    Sensitivity,
    allocate,
    predicted_divergence,
)
from nearplane.types import NearplaneError

sensitivities = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3),
    st.builds(
        Sensitivity,
        divergence=st.floats(0, 10),
        weights=st.integers(1, 10**9),
        bpw=st.just(3.0),
        floor=st.floats(0, 1.5),
    ),
    min_size=1,
    max_size=20,
)


def mean(bits, of) -> float:
    return sum(bits[n] * c.weights for n, c in of.items()) / sum(c.weights for c in of.values())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(sensitivities, st.floats(1.6, 8))
def test_the_mean_is_met_from_below(of, bpw):
    """To 1e-9: 60 halvings of at most some hundred bits."""
    bits = allocate(of, bpw)
    assert mean(bits, of) <= bpw * (1 + 1e-12)
    assert mean(bits, of) >= bpw - 1e-9
    assert all(max(LOWEST, of[n].floor) <= b <= HIGHEST for n, b in bits.items())


def test_slopes_are_equal_and_nothing_else_is_better():
    of = {
        "a": Sensitivity(0.3, 1000, 3.0),
        "b": Sensitivity(0.02, 5000, 3.0),
        "c": Sensitivity(0.1, 200, 3.0),
    }
    bits = allocate(of, 3.0)
    slopes = [c.divergence * 4.0 ** (3 - bits[n]) / c.weights for n, c in of.items()]
    assert slopes == pytest.approx([slopes[0]] * 3, rel=1e-6)
    best = predicted_divergence(of, bits)
    for giver, taker in [("a", "b"), ("b", "a"), ("c", "b"), ("a", "c")]:
        moved = dict(bits)
        moved[giver] -= 0.1
        moved[taker] += 0.1 * of[giver].weights / of[taker].weights
        assert mean(moved, of) == pytest.approx(3.0)
        assert predicted_divergence(of, moved) > best


def test_every_bit_less_takes_four_times_the_divergence():
    of = {"a": Sensitivity(0.3, 1000, 3.0), "b": Sensitivity(0.02, 5000, 3.0)}
    assert predicted_divergence(of, {"a": 3.0, "b": 3.0}) == pytest.approx(0.32)
    assert predicted_divergence(of, {"a": 2.0, "b": 4.0}) == pytest.approx(1.2 + 0.005)


def test_equal_layers_get_equal_bits():
    bits = allocate({n: Sensitivity(0.1, 500, 3.0) for n in "abc"}, 2.5)
    assert list(bits.values()) == pytest.approx([2.5] * 3)


def test_a_layer_without_effect_gets_the_least():
    bits = allocate({"a": Sensitivity(1.0, 100, 3.0), "b": Sensitivity(0.0, 100, 3.0)}, 3.0)
    assert bits["b"] == LOWEST and bits["a"] == pytest.approx(6 - LOWEST)


def test_a_mean_below_every_floor_is_refused():
    with pytest.raises(NearplaneError, match=r"at least 2\.00"):
        allocate({"a": Sensitivity(1.0, 100, 3.0, floor=2.0)}, 1.5)

"""Allocation: the mean is met from below, slopes are equal, floors and limits are kept."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane.methods.allocation import (
    HIGHEST,
    LOWEST,
    Sensitivity,
    allocate,
    allocate_among,
    predicted_at,
    predicted_divergences,
    shared_out,
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
    best = total(of, bits)
    for giver, taker in [("a", "b"), ("b", "a"), ("c", "b"), ("a", "c")]:
        moved = dict(bits)
        moved[giver] -= 0.1
        moved[taker] += 0.1 * of[giver].weights / of[taker].weights
        assert mean(moved, of) == pytest.approx(3.0)
        assert total(of, moved) > best


def total(of, bits):
    return sum(predicted_divergences(of, bits).values())


def test_predictions_at_other_averages_leave_out_what_cannot_be_met():
    of = {"a": Sensitivity(0.3, 1000, 3.0), "b": Sensitivity(0.02, 5000, 3.0)}
    found = dict(predicted_at(of, [1.0, 4.0, 4.5]))
    assert list(found) == [4.0, 4.5]
    assert found[4.0] == shared_out(of, 4.0)[1]
    assert found[4.5] == pytest.approx(found[4.0] / 2)  # half a bit everywhere halves it


def test_every_bit_less_takes_four_times_the_divergence():
    of = {"a": Sensitivity(0.3, 1000, 3.0), "b": Sensitivity(0.02, 5000, 3.0)}
    assert total(of, {"a": 3.0, "b": 3.0}) == pytest.approx(0.32)
    assert total(of, {"a": 2.0, "b": 4.0}) == pytest.approx(1.2 + 0.005)


def test_equal_layers_get_equal_bits():
    bits = allocate({n: Sensitivity(0.1, 500, 3.0) for n in "abc"}, 2.5)
    assert list(bits.values()) == pytest.approx([2.5] * 3)


def test_a_layer_without_effect_gets_the_least():
    bits = allocate({"a": Sensitivity(1.0, 100, 3.0), "b": Sensitivity(0.0, 100, 3.0)}, 3.0)
    assert bits["b"] == LOWEST and bits["a"] == pytest.approx(6 - LOWEST)


def test_a_mean_below_every_floor_is_refused():
    with pytest.raises(NearplaneError, match=r"at least 2\.00"):
        allocate({"a": Sensitivity(1.0, 100, 3.0, floor=2.0)}, 1.5)


RATES = {3.4375: 3.0, 4.25: 4.0, 5.5: 4.8, 6.5625: 6.1, 8.5: 7.8}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(sensitivities, st.floats(3.5, 9))
def test_few_rates_leave_no_bit_that_one_layer_could_use(of, bpw):
    found = allocate_among(of, bpw, dict.fromkeys(of, RATES))
    assert set(found.values()) <= set(RATES) and mean(found, of) <= bpw * (1 + 1e-9)
    for name in of:
        for rate in RATES:
            if rate > found[name]:
                assert mean(found | {name: rate}, of) > bpw * (1 - 1e-9)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(1e-6, 10), min_size=2, max_size=4), st.floats(3.5, 8.5))
def test_few_rates_of_layers_of_one_size_are_the_best(divergences, bpw):
    """Rates whose gains fall: the greedy choice errs by less than one step of one layer."""
    of = {str(n): Sensitivity(d, 100, 3.0) for n, d in enumerate(divergences)}
    found, expected = shared_out(of, bpw, lambda columns: RATES)
    total = {
        choice: sum(
            d * 4 ** (3.0 - RATES[rate]) for d, rate in zip(divergences, choice, strict=True)
        )
        for choice in product(RATES, repeat=len(of))
        if sum(choice) <= bpw * len(of)
    }
    assert expected == pytest.approx(total[tuple(found[str(n)] for n in range(len(of)))])
    steps = [d * (4**-3.0 - 4**-4.0) * 64 for d in divergences]
    assert expected <= min(total.values()) + max(steps)


def test_an_average_below_all_rates_is_refused():
    with pytest.raises(NearplaneError, match="need at least 3.44 on average"):
        allocate_among({"a": Sensitivity(0.1, 10, 3.0)}, 3.0, {"a": RATES})

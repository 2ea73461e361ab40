import numpy as np
import pytest
from hypothesis import given, settings

from nearplane.codes.alphabet import _alphabet, choose_alphabet, entropy, histogram, symbols_of
from tests.codes.draw import INT32, gaussian, integers


@given(integers())
def test_a_histogram_is_that_of_numpy(array):
    values, counts = histogram(array)
    expected = np.unique(array, return_counts=True)
    assert np.array_equal(values, expected[0]) and np.array_equal(counts, expected[1])


@given(integers())
@settings(max_examples=50)
def test_symbols_are_counted_as_promised(array):
    if not len(array):
        return
    alphabet = choose_alphabet(*histogram(array), 12)
    symbols = symbols_of(array, alphabet).astype(np.int64)
    span = len(alphabet.counts) - 1
    assert np.array_equal(np.bincount(symbols, minlength=span + 1), alphabet.counts)
    inside = symbols < span
    assert np.array_equal(symbols[inside] + alphabet.low, array[inside])
    offset = array[~inside].astype(np.int64) - alphabet.escape_low
    assert len(offset) == alphabet.escapes
    assert ((offset >= 0) & (offset < 2**alphabet.escape_width)).all()


@pytest.mark.parametrize("sigma", [1.05, 2.1, 4.2])
@pytest.mark.parametrize("count", [2000, 100_000])
def test_ten_cuts_are_nearly_as_good_as_all(sigma, count):
    values, counts = histogram(gaussian(1, count, sigma))
    n = len(values)
    every = (_alphabet(values, counts, a, b, 12) for a in range(n) for b in range(a + 1, n + 1))
    best = min(alphabet.bits for alphabet in every)
    # the best cut of a few thousand integers may differ by a symbol on one side
    assert choose_alphabet(values, counts, 12).bits <= best + 0.002 * count


def test_one_huge_integer_costs_only_itself():
    array = gaussian(0, 50_000, 2.1)
    before = choose_alphabet(*histogram(array), 12).bits
    array[7] = INT32.max
    # 32 bits for it, and as many for the few at the border that escape with it
    assert choose_alphabet(*histogram(array), 12).bits < before + 6 * 32


def test_an_alphabet_up_to_the_last_integer():
    array = np.arange(INT32.max - 5, INT32.max + 1, dtype=np.int64).astype(np.int32).repeat(50)
    alphabet = choose_alphabet(*histogram(array), 12)
    assert alphabet.low == INT32.max - 5 and alphabet.escapes == 0


@pytest.mark.parametrize(
    "counts, bits", [([], 0), ([5], 0), ([0, 3], 0), ([1, 1], 1), ([8] * 8, 3)]
)
def test_entropy_of_even_counts(counts, bits):
    assert entropy(np.array(counts, np.int64)) == pytest.approx(bits)

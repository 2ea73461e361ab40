import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane.codes.frequencies import PRECISION, TOTAL, frequencies
from nearplane.codes.shapes import Shapes, fit_shapes
from tests.codes import slow
from tests.codes.draw import laws


def sizes(probability: np.ndarray, count: int) -> np.ndarray:
    """Return the expected counts of |z| from the probabilities of z = 0 .. span."""
    places = np.where(np.arange(len(probability)), 2, 1)
    return count * places * probability / (places @ probability)


def mean_bits(shapes: Shapes, counts: np.ndarray) -> np.ndarray:
    """Return the bits of an integer in each table, signs included."""
    half = shapes.lengths(counts.shape[1] - 1)
    room = np.full(len(counts), TOTAL - 1)
    both = frequencies(np.concatenate([half[:, :0:-1], half], axis=1), room)
    length = PRECISION - np.log2(both[:, half.shape[1] - 1 :])
    return (counts * length).sum(axis=1) / counts.sum(axis=1)


def entropy(counts: np.ndarray) -> np.ndarray:
    p = counts / counts.sum(axis=1, keepdims=True)
    signs = p[:, 1:].sum(axis=1)
    return signs - (p * np.log2(np.maximum(p, 1e-300))).sum(axis=1)


numbers = st.integers(0, 2000)
signed = st.integers(-2000, 2000)


@given(st.integers(0, 15), numbers, signed, signed, st.integers(1, 300))
@laws
def test_lengths_are_those_of_the_document(scale, square, linear, zero, span):
    shapes = Shapes(*(np.array([x]) for x in (scale, square, linear, zero)))
    expected = slow.shape(span, scale, square, linear, zero)
    assert shapes.lengths(span)[0].tolist() == expected[span:]


@pytest.mark.parametrize("sigma", [0.2, 0.5, 1.05, 2.1, 4.2, 60.0])
@pytest.mark.parametrize("power", [1, 1.5, 2])
def test_bell_curves_are_fitted_closely(sigma, power):
    z = np.arange(int(12 * sigma) + 3)
    counts = sizes(np.exp(-((z / sigma) ** power)), 100_000)[None]
    # a sixteenth of a bit of rounding, 0.0002 bits; the shape of |z|^1.5 is not exact
    limit = 0.003 if power == 1.5 else 0.001
    assert mean_bits(fit_shapes(counts), counts) - entropy(counts) < limit


@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 5))
@settings(laws, max_examples=100)
def test_any_counts_have_a_shape(seed, span, tables):
    rng = np.random.default_rng(seed)
    counts = np.rint(rng.exponential(size=(tables, span + 1)) ** 6)
    counts[rng.random(tables) < 0.3] = 0
    lengths = fit_shapes(counts).lengths(span)
    assert (lengths >= 0).all() and (lengths.min(axis=1) == 0).all()


def test_what_was_never_seen_is_not_cheaper_than_what_was():
    counts = np.zeros((1, 60))
    counts[0, :4] = 900, 500, 60, 2
    lengths = fit_shapes(counts).lengths(59)[0]
    assert (np.diff(lengths[1:]) >= 0).all() and lengths[-1] > lengths[3]


def test_one_table_does_not_depend_on_the_others():
    z = np.arange(30)
    one = sizes(np.exp(-(z**2) / 30), 5000)
    odd = np.where(z == 29, 1e6, 0.0)
    alone, beside = fit_shapes(one[None]), fit_shapes(np.stack([odd, one]))
    assert np.abs(alone.lengths(29)[0] - beside.lengths(29)[1]).max() <= 1

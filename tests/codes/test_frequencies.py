import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nearplane.codes.frequencies import MANTISSA, PRECISION, TOTAL, frequencies, weights
from tests.codes import slow
from tests.codes.draw import laws

some_lengths = st.lists(st.integers(0, 500), min_size=1, max_size=60).map(
    lambda lengths: [x - min(lengths) for x in lengths]
)


def test_mantissas_are_those_of_the_document():
    assert MANTISSA.tolist() == slow.MANTISSA
    assert MANTISSA.tolist() == [int(2 ** (23 - i / 16) + 0.5) for i in range(16)]


def test_a_weight_halves_every_sixteen():
    lengths = np.arange(16 * (PRECISION + 2))
    exact = 2.0 ** (23 - lengths / 16)
    assert (np.abs(weights(lengths[None])[0] - exact) <= 1).all()


@given(some_lengths, st.integers(2**23, 2**24))
@laws
def test_frequencies_are_those_of_the_document(lengths, room):
    found = frequencies(np.array([lengths]), np.array([room]))[0]
    assert found.tolist() == slow.shares(lengths, room)
    assert found.sum() == room and found.min() >= 1


def test_the_largest_tables_do_not_overflow():
    for lengths in (np.zeros(2**16, np.int64), np.arange(2**16) % 300):
        found = frequencies(lengths[None], np.array([TOTAL]))[0]
        assert found.min() >= 1 and found.sum() == TOTAL

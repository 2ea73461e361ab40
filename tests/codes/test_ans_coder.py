"""The coder in Python gives what constriction gives, word by word, and refuses what it refuses."""

import runpy
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane.codes import CorruptError, Rans, ans_coder, record
from nearplane.codes.ans_coder import PlainCoder, PlainModel
from nearplane.codes.bands import FIRST_STATE
from tests.codes.draw import laws, spread
from tests.codes.test_golden import BAD, GOOD

SUM = 1 << ans_coder.PRECISION


@st.composite
def frequencies(draw) -> np.ndarray:
    """Return frequencies that add up to 2^24, none of them 0."""
    symbols = draw(st.integers(2, 40))
    cuts = draw(st.sets(st.integers(1, SUM - 1), min_size=symbols - 1, max_size=symbols - 1))
    return np.diff([0, *sorted(cuts), SUM]).astype(np.int64)


@given(frequencies(), st.data())
@settings(laws, max_examples=60)
def test_words_are_those_of_constriction(frequency, data):
    symbols = data.draw(st.lists(st.integers(0, len(frequency) - 1), max_size=200))
    some = np.array(symbols, np.int32)
    plain, model = PlainCoder(FIRST_STATE), PlainModel(frequency)
    fast = ans_coder.stream.stack.AnsCoder(FIRST_STATE)
    plain.encode_reverse(some, model)
    fast.encode_reverse(some, ans_coder.model_of(frequency))
    words = plain.get_compressed()
    assert words.tolist() == fast.get_compressed().tolist() and plain.pos() == fast.pos()
    again = PlainCoder(words)
    assert again.decode(model, len(some)).tolist() == symbols and again.pos() == (0, 1 << 32)


@given(frequencies(), st.lists(st.integers(0, 2**32 - 1), max_size=20), st.integers(0, 60))
@settings(laws, max_examples=60)
def test_any_words_mean_the_same_to_both(frequency, drawn, count):
    words = np.array(drawn, np.uint32)
    if drawn and drawn[-1] == 0:
        for coder in (PlainCoder, ans_coder.stream.stack.AnsCoder):
            with pytest.raises(ValueError):
                coder(words)
        return
    plain, fast = PlainCoder(words), ans_coder.stream.stack.AnsCoder(words)
    got = plain.decode(PlainModel(frequency), count).tolist()
    assert got == fast.decode(ans_coder.model_of(frequency), count).tolist()
    assert plain.pos()[1] == fast.pos()[1]


def test_without_constriction_records_are_the_same(monkeypatch):
    matrix = spread(3, 70, 90, 2.0, 1.0)
    expected = Rans().encode(matrix)
    golden = [record.unpack(path.read_bytes()).code for path in GOOD]
    monkeypatch.setitem(sys.modules, "constriction", None)
    assert runpy.run_path(ans_coder.__file__)["stream"] is None
    monkeypatch.setattr(ans_coder, "stream", None)
    assert Rans().encode(matrix) == expected
    assert np.array_equal(Rans().decode(expected, *matrix.shape)[0], matrix)
    for path, code in zip(GOOD, golden, strict=True):
        assert record.unpack(path.read_bytes()).code.equal(code), path
    for path in BAD:
        with pytest.raises(CorruptError):
            record.unpack(path.read_bytes())

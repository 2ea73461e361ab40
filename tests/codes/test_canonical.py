import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearplane.codes.canonical import AT_ONCE, check_complete, code_words, lookup
from nearplane.codes.corrupt import CorruptError
from nearplane.codes.lengths import code_lengths
from tests.codes import slow

complete = st.lists(st.integers(0, 1000), min_size=2, max_size=40).filter(
    lambda counts: sum(count > 0 for count in counts) > 1
)


def lengths_of(counts: list[int]) -> np.ndarray:
    return code_lengths(np.array(counts, np.int64), 15)


@given(complete)
def test_words_are_those_of_the_document(counts):
    lengths = lengths_of(counts)
    words = code_words(lengths)
    expected = slow.code_table(lengths.tolist())
    for bits, symbol in expected.items():
        assert words[symbol] == sum(bit << k for k, bit in enumerate(bits))
        assert lengths[symbol] == len(bits)


@given(complete, st.integers(0, 2**15 - 1), st.integers(0, 3))
def test_a_lookup_finds_the_whole_symbols_of_a_window(counts, pattern, spare):
    lengths = lengths_of(counts)
    window = min(15, int(lengths.max()) + spare)
    pattern %= 1 << window
    table = lookup(lengths, np.arange(len(lengths), dtype=np.int32) - 7, window)
    words, symbols, ends, word = slow.code_table(lengths.tolist()), [], [0], ()
    for k in range(window):
        word += (pattern >> k & 1,)
        if word in words and len(symbols) < AT_ONCE:
            symbols.append(words[word] - 7)
            ends.append(k + 1)
            word = ()
    assert table.found[pattern] == len(symbols) > 0
    assert table.value[pattern, : len(symbols)].tolist() == symbols
    assert table.bits[pattern, : len(ends)].tolist() == ends
    assert (table.bits[pattern, len(ends) :] == ends[-1]).all()


@pytest.mark.parametrize("lengths", [[1], [0, 1], [1, 1], [2, 1, 2], [15] * 2 + list(range(1, 15))])
def test_complete_lengths_are_accepted(lengths):
    check_complete(np.array(lengths, np.uint8))


@pytest.mark.parametrize(
    "lengths", [[], [0], [0, 0], [2], [1, 2], [1, 1, 1], [1, 1, 15], [2, 2, 2]]
)
def test_incomplete_or_overfull_lengths_are_refused(lengths):
    with pytest.raises(CorruptError):
        check_complete(np.array(lengths, np.uint8))

import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearplane.codes.lengths import code_cost, code_lengths

counts_lists = st.lists(st.integers(0, 2**40) | st.integers(0, 9), min_size=1, max_size=60)


def huffman_cost(counts: list[int]) -> int:
    """Return Σ count · length of the unlimited code: the sum of all merged weights."""
    heap = [count for count in counts if count]
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def exhaustive_cost(counts: list[int], limit: int) -> int:
    """Return the least Σ count · length over all lengths up to `limit` that satisfy Kraft."""
    choices = itertools.product(range(1, limit + 1), repeat=len(counts))
    fits = (c for c in choices if sum(2.0**-n for n in c) <= 1)
    return min(sum(k * n for k, n in zip(counts, c, strict=True)) for c in fits)


def cost(counts: list[int], lengths: np.ndarray) -> int:
    return sum(k * int(n) for k, n in zip(counts, lengths, strict=True))


@given(counts_lists)
def test_a_generous_limit_gives_the_cost_of_plain_huffman(counts):
    lengths = code_lengths(np.array(counts, np.int64), 60)
    assert cost(counts, lengths) == huffman_cost(counts)


@given(counts_lists, st.integers(6, 15))
def test_lengths_are_complete_limited_and_cost_what_is_said(counts, limit):
    array = np.array(counts, np.int64)
    lengths = code_lengths(array, limit)
    assert lengths.max(initial=0) <= limit
    assert ((lengths > 0) == (array > 0)).all()
    assert cost(counts, lengths) == code_cost(array, limit)
    if (array > 0).sum() > 1:
        assert sum(2.0 ** -int(n) for n in lengths if n) == 1


@given(st.lists(st.integers(1, 50), min_size=2, max_size=5), st.integers(3, 4))
def test_no_limited_code_is_cheaper(counts, limit):
    lengths = code_lengths(np.array(counts, np.int64), limit)
    assert cost(counts, lengths) == exhaustive_cost(counts, limit)


def test_a_tight_limit_gives_equal_lengths():
    fibonacci = np.array([1, 1, 2, 3, 5, 8, 13, 21], np.int64)
    assert code_lengths(fibonacci, 3).tolist() == [3] * 8
    assert code_lengths(fibonacci, 15).max() == 7


@pytest.mark.parametrize("counts, lengths", [([0], [0]), ([7], [1]), ([0, 5, 0], [0, 1, 0])])
def test_fewer_than_two_symbols(counts, lengths):
    assert code_lengths(np.array(counts), 12).tolist() == lengths


def test_more_symbols_than_words_is_a_value_error():
    for function in (code_lengths, code_cost):
        with pytest.raises(ValueError, match="9 symbols"):
            function(np.ones(9, np.int64), 3)

"""rANS coders of the library constriction, or the same in Python where it has no wheel.

constriction is fast, and the dependency wherever it can be installed. It has no wheel for Linux on
ARM and no source on PyPI: there `PlainCoder` gives the same words, at some million integers a
second. Loaded layers are decoded by the compiled kernels in either case.
"""

from bisect import bisect_right
from itertools import accumulate
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt32

try:
    from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:
    stream = None

PRECISION = 24  # bits of the frequencies' sum
Words = UInt32[np.ndarray, "_"]


def coder_of(words: Words) -> Any:
    """Return a coder of these words; ValueError for words that no coder leaves."""
    return PlainCoder(words) if stream is None else stream.stack.AnsCoder(words)


def model_of(frequency: Int64[np.ndarray, " symbols"]) -> Any:
    """Return a model that has exactly these frequencies, for the coders of `coder_of`.

    constriction gives symbol k the interval from k + ⌊(p(0) + ... + p(k − 1)) · scale⌋, with
    scale = (2^24 − n) / Σ p. For p = frequency − 1 all sums are integers and scale is 1.
    """
    if stream is None:
        return PlainModel(frequency)
    return stream.model.Categorical((frequency - 1).astype(np.float64), perfect=False)


class PlainModel:
    """Frequencies of symbols, and the sums of those before each."""

    def __init__(self, frequency: Int64[np.ndarray, " symbols"]):
        self.frequency = frequency.tolist()
        self.first = list(accumulate(self.frequency, initial=0))[:-1]


class PlainCoder:
    """constriction's AnsCoder of 32-bit words, whose state is below 2^64: a stack of symbols."""

    def __init__(self, words: Words):
        bulk = words.tolist()
        if bulk and bulk[-1] == 0:
            raise ValueError("the last word of a stream is never 0")
        self.state = 0
        while bulk and self.state >> 32 == 0:
            self.state = self.state << 32 | bulk.pop()
        self.bulk = bulk

    def encode_reverse(self, symbols: Int32[np.ndarray, " n"], model: PlainModel) -> None:
        """Push symbols, the last one first, so that `decode` gives them in their order."""
        frequency, first, state = model.frequency, model.first, self.state
        for symbol in symbols[::-1].tolist():
            share = frequency[symbol]
            if state >> 64 - PRECISION >= share:
                self.bulk.append(state & 0xFFFFFFFF)
                state >>= 32
            prefix, rest = divmod(state, share)
            state = prefix << PRECISION | first[symbol] + rest
        self.state = state

    def decode(self, model: PlainModel, count: int) -> Int32[np.ndarray, " count"]:
        """Pop so many symbols."""
        frequency, first, state, bulk = model.frequency, model.first, self.state, self.bulk
        found = np.empty(count, np.int32)
        for place in range(count):
            within = state & (1 << PRECISION) - 1
            symbol = bisect_right(first, within) - 1
            found[place] = symbol
            state = (state >> PRECISION) * frequency[symbol] + within - first[symbol]
            if state >> 32 == 0 and bulk:
                state = state << 32 | bulk.pop()
        self.state = state
        return found

    def pos(self) -> tuple[int, int]:
        """Return how many words lie beside the state, and the state."""
        return len(self.bulk), self.state

    def get_compressed(self) -> Words:
        """Return all words, the state's last."""
        words = [*self.bulk, self.state & 0xFFFFFFFF, self.state >> 32]
        return np.array(words, np.uint32)

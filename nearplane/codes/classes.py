"""How likely each class of rows or columns is, as 4-bit code lengths (docs/formats/rans.md).

A length counts half bits: length L means a probability proportional to 2^(−L / 2).
"""

import numpy as np
from jaxtyping import Int64, UInt8

from nearplane.codes.frequencies import TOTAL, UNIT, frequencies

WIDTH = 4  # bits of a stored length
LONGEST = 2**WIDTH - 1
HALF_BIT = UNIT // 2  # in the sixteenths of a bit that `frequencies` takes


def class_lengths(classes: UInt8[np.ndarray, " n"]) -> UInt8[np.ndarray, " classes"]:
    """Return round(2 log₂(count of the most frequent class / count)), at most 15."""
    counts = np.maximum(np.bincount(classes), 2.0**-LONGEST)
    return np.minimum(np.rint(2 * np.log2(counts.max() / counts)), LONGEST).astype(np.uint8)


def class_frequencies(lengths: UInt8[np.ndarray, " classes"]) -> Int64[np.ndarray, " classes"]:
    """Return the rANS frequencies of classes with these lengths; they add up to 2^24."""
    return frequencies(HALF_BIT * lengths[None].astype(np.int64), np.array([TOTAL]))[0]

"""Code lengths -> the integer frequencies of symbols that rANS needs (docs/formats/rans.md)."""

import numpy as np
from jaxtyping import Int64

PRECISION = 24
TOTAL = 1 << PRECISION  # what the frequencies of a table add up to
UNIT = 16  # a length counts sixteenths of a bit
# ⌊2^23 · 2^(−i / 16) + ½⌋ for i = 0 .. 15
MANTISSA = np.array(
    [8388608, 8032959, 7692387, 7366255, 7053950, 6754886, 6468501, 6194258]
    + [5931642, 5680159, 5439339, 5208729, 4987896, 4776426, 4573921, 4380002],
    np.int64,
)


def weights(lengths: Int64[np.ndarray, "tables symbols"]) -> Int64[np.ndarray, "tables symbols"]:
    """Return 2^(23 − length / 16) in integer arithmetic, the same on every machine.

    "W(L) is MANTISSA[L mod 16] shifted right by ⌊L / 16⌋ bits"
    """
    return MANTISSA[lengths % UNIT] >> np.minimum(lengths // UNIT, PRECISION)


def frequencies(
    lengths: Int64[np.ndarray, "tables symbols"], room: Int64[np.ndarray, " tables"]
) -> Int64[np.ndarray, "tables symbols"]:
    """Return frequencies of at least 1, about proportional to 2^(−length / 16), that sum to `room`.

    "C(k) = k + ⌊(room − n) · (W(0) + ... + W(k − 1)) / (W(0) + ... + W(n − 1))⌋. Symbol k has the
    frequency C(k + 1) − C(k)." The least length of every table must be 0. With at most 2^16
    symbols of weight 2^23 each, the products stay below 2^63.
    """
    below = np.cumsum(weights(lengths), axis=1)
    free = room[:, None] - lengths.shape[1]
    return np.diff(below * free // below[:, -1:], axis=1, prepend=0) + 1

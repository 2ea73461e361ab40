"""Code lengths described by four parameters a table, and fitting them to counts.

A shaped table says that the code length of an integer z is a quadratic function of |z|, apart from
z = 0. That is a discrete distribution between a Gaussian and a Laplacian, with its own share of
zeros.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from nearplane.codes.frequencies import UNIT

NEWTON_STEPS = 12
MOST_BACKTRACKS = 8  # times that a Newton step may be divided by 4
TOLERANCE = 1e-6  # nats an integer: iterations end when they gain less
RIDGE = 1e-5  # nats an integer: penalty on parameters that the counts do not determine
LEAST_DEVIATION = 0.5  # smallest standard deviation of a table
PRIOR = 1.0  # weight, in integers, of a Gaussian that is added to the counts
LARGEST = 2**14 - 1  # largest magnitude of a stored parameter


@dataclass(frozen=True)
class Shapes:
    """The parameters of shaped tables, one entry a table.

    length(0) = 0,  length(z) = zero + (linear · |z| · 2^scale + square · z²) / 2^(2 scale + 1)

    in sixteenths of a bit. 2^scale is about the standard deviation, so that `linear` and `square`
    are small numbers for any spread: 0 and 23 for a Gaussian of standard deviation 2^scale.
    """

    scale: Int64[np.ndarray, " tables"]
    square: Int64[np.ndarray, " tables"]
    linear: Int64[np.ndarray, " tables"]
    zero: Int64[np.ndarray, " tables"]

    def lengths(self, span: int) -> Int64[np.ndarray, "tables span_plus_one"]:
        """Return the lengths of |z| = 0 .. span, minus the least length of each table.

        "L(z) = zero + ⌊(linear · |z| · 2^scale + square · z² + 4^scale) / 2^(2 scale + 1)⌋"
        """
        z = np.arange(span + 1)
        scale = self.scale[:, None]
        bent = ((self.linear[:, None] * z) << scale) + self.square[:, None] * z**2
        result = self.zero[:, None] + ((bent + (1 << 2 * scale)) >> (2 * scale + 1))
        result[:, 0] = 0
        return result - result.min(axis=1, keepdims=True)


def fit_shapes(counts: Float64[np.ndarray, "tables span_plus_one"]) -> Shapes:
    """Return the parameters under which the counted integers take the fewest bits.

    It maximises the likelihood of p(z) ∝ exp(−θ · (z², |z|, [z ≠ 0])), a convex problem, by
    Newton's method: first over all of θ. Then one entry after the other is rounded to a stored
    integer, and the remaining entries are fitted again.

    - `counts`: how often |z| = 0 .. span occurs.
    """
    z = np.arange(counts.shape[1], dtype=np.float64)
    places = np.where(z, 2.0, 1.0)  # z and −z
    deviation, observed = _observed(counts, z, places)
    u = z / deviation[:, None]
    features = np.stack([u**2, u, np.broadcast_to(z > 0, u.shape)], axis=1).astype(np.float64)
    theta = _newton(features, observed, places, _start(u, observed, places), free=3)
    # with a negative quadratic term, the largest integers would become the most likely ones
    theta[:, 0] = np.maximum(theta[:, 0], 0)
    scale = np.maximum(np.rint(np.log2(deviation)), 0).astype(np.int64)
    unit = np.log(2) / UNIT  # nats in a sixteenth of a bit
    grid = np.stack([deviation**2 / 4**scale, deviation / 2**scale], axis=1) * unit / 2
    square = _rounded_(theta, 0, grid[:, 0])
    theta = _newton(features, observed, places, theta, free=2)
    linear = _rounded_(theta, 1, grid[:, 1])
    theta = _newton(features, observed, places, theta, free=1)
    zero = _rounded_(theta, 2, np.full(len(counts), unit))
    return Shapes(scale, square, linear, zero)


def _start(
    u: np.ndarray, observed: np.ndarray, places: np.ndarray
) -> Float64[np.ndarray, "tables 3"]:
    """Return the θ of a Gaussian in units of u, with the observed share of zeros."""
    beside = (places * np.exp(-(u**2) / 2))[:, 1:].sum(axis=1)
    zero = np.log(beside) - np.log((1 - observed[:, 0]) / observed[:, 0])
    return np.stack([np.full(len(u), 0.5), np.zeros(len(u)), zero], axis=1)


def _observed(
    counts: np.ndarray, z: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each table's standard deviation and its distribution of |z|, the prior included."""
    total = counts.sum(axis=1)
    variance = (counts @ z**2 + LEAST_DEVIATION**2) / (total + 1)
    deviation = np.maximum(np.sqrt(variance), LEAST_DEVIATION)
    gaussian = places * np.exp(-((z / deviation[:, None]) ** 2) / 2)
    mixed = counts + PRIOR * gaussian / gaussian.sum(axis=1, keepdims=True)
    return deviation, mixed / mixed.sum(axis=1, keepdims=True)


def _newton(
    features: np.ndarray, observed: np.ndarray, places: np.ndarray, theta: np.ndarray, free: int
) -> Float64[np.ndarray, "tables 3"]:
    """Return `theta` after minimising the mean code length over its last `free` entries.

        log Σ exp(−θ·f) + θ·E_observed f + ½ RIDGE ‖θ − θ_start‖²

    In every table, a Newton step that increases this is divided by 4.
    """
    fixed, used = features[:, : 3 - free], features[:, 3 - free :]
    base = np.log(places) - np.einsum("tfz,tf->tz", fixed, theta[:, : 3 - free])
    wanted = np.einsum("tfz,tz->tf", used, observed)
    start = now = theta[:, 3 - free :]
    value, p = _mean_length(base, used, wanted, now)
    for _ in range(NEWTON_STEPS):
        mean = np.einsum("tfz,tz->tf", used, p)
        second = np.einsum("tfz,tgz,tz->tfg", used, used, p)
        hessian = second - mean[:, :, None] * mean[:, None, :] + RIDGE * np.eye(free)
        slope = mean - wanted - RIDGE * (now - start)
        step = np.linalg.solve(hessian, slope[:, :, None])[:, :, 0]
        before, value = value, np.full(len(value), np.inf)
        for _ in range(MOST_BACKTRACKS):
            value, p = _mean_length(base, used, wanted, now + step)
            value += RIDGE / 2 * ((now + step - start) ** 2).sum(axis=1)
            worse = value > before + TOLERANCE
            if not worse.any():
                break
            step[worse] /= 4
        now = now + step
        if (before - value).max() < TOLERANCE:
            break
    return np.concatenate([theta[:, : 3 - free], now], axis=1)


def _mean_length(
    base: np.ndarray, used: np.ndarray, wanted: np.ndarray, theta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return log Σ exp(base − θ·f) + θ·wanted of each table, and its probabilities."""
    exponent = base - np.einsum("tfz,tf->tz", used, theta)
    top = exponent.max(axis=1)
    p = np.exp(exponent - top[:, None])
    total = p.sum(axis=1)
    return np.log(total) + top + (theta * wanted).sum(axis=1), p / total[:, None]


def _rounded_(theta: np.ndarray, which: int, grid: np.ndarray) -> Int64[np.ndarray, " tables"]:
    """Round entry `which` of `theta` in place to a multiple of `grid`; return the multiples."""
    multiple = np.rint(np.nan_to_num(theta[:, which] / grid)).clip(-LARGEST, LARGEST)
    theta[:, which] = multiple * grid
    return multiple.astype(np.int64)

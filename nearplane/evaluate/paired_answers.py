"""Whether two models answer the same questions differently well, and by how much.

Both answer the same questions, so what counts are the questions on which they differ: McNemar's
exact test [McNemar47] and Newcombe's interval [NewcombePaired98] where an answer is right or wrong,
and a paired bootstrap over questions for every other metric [Miller24, Sec. 4].
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from nearplane.evaluate.intervals import CONFIDENCE, Estimate, wilson

RESAMPLES = 1000
SEED = 1
FEWEST_QUESTIONS = 10  # that a bootstrap takes
MCNEMAR, BOOTSTRAP = "McNemar, exact", f"paired bootstrap, {RESAMPLES} resamples"
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)

Aggregate = Callable[[list[Any]], float]


@dataclass(frozen=True)
class Comparison:
    """The score of a model minus that of a reference on the same questions.

    - `p`: probability of a difference as large if both were equally good; None: too few questions.
    - `test`: how p was computed.
    - `only_model`, `only_reference`: questions that one of both alone answers right; None where
      answers are not right or wrong.
    """

    difference: Estimate
    p: float | None
    test: str
    only_model: int | None = None
    only_reference: int | None = None


def is_right_or_wrong(values: Sequence[Any]) -> bool:
    """Whether every value is 0 or 1."""
    return all(np.isscalar(value) and value in (0, 1) for value in values)


def score(values: Sequence[Any], aggregate: Aggregate) -> Estimate:
    """Return a metric over all questions, from its value of each, with its 95 % interval.

    - `aggregate`: makes one figure of the values of all questions.
    """
    value = float(aggregate(list(values)))
    if is_right_or_wrong(values) and math.isclose(value, sum(values) / len(values)):
        return Estimate(value, *wilson(value, float(len(values)), Z))
    if len(values) < FEWEST_QUESTIONS:
        return Estimate(value)
    return Estimate(value, *middle(resampled(values, aggregate)))


def compared(model: Sequence[Any], reference: Sequence[Any], aggregate: Aggregate) -> Comparison:
    """Return how the answers of both models differ; the i-th values are of the same question."""
    if is_right_or_wrong(model) and is_right_or_wrong(reference):
        table = [0, 0, 0, 0]
        for ours, theirs in zip(model, reference, strict=True):
            table[2 * (1 - int(ours)) + 1 - int(theirs)] += 1
        _, only_model, only_reference, _ = table
        p = mcnemar(only_model, only_reference)
        return Comparison(newcombe(*table), p, MCNEMAR, only_model, only_reference)
    value = float(aggregate(list(model))) - float(aggregate(list(reference)))
    if len(model) < FEWEST_QUESTIONS:
        return Comparison(Estimate(value), None, f"none: {len(model)} questions are too few")
    differences = resampled(model, aggregate) - resampled(reference, aggregate)
    least = min((differences <= 0).mean(), (differences >= 0).mean())
    p = min(1.0, 2 * max(float(least), 1 / RESAMPLES))
    return Comparison(Estimate(value, *middle(differences)), p, BOOTSTRAP)


def mcnemar(only_model: int, only_reference: int) -> float:
    """Return the two-sided exact p: that of so uneven tosses of a fair coin, or more uneven."""
    tosses = only_model + only_reference
    tail = sum(math.comb(tosses, k) for k in range(min(only_model, only_reference) + 1))
    return min(1.0, 2 * tail / 2**tosses)


def newcombe(both: int, only_model: int, only_reference: int, neither: int) -> Estimate:
    """Return the difference of two paired shares, by method 10 of [NewcombePaired98]."""
    n = both + only_model + only_reference + neither
    p1, p2 = (both + only_model) / n, (both + only_reference) / n
    (low1, high1), (low2, high2) = (score_interval(p, n) for p in (p1, p2))
    products = (both + only_model) * (only_reference + neither)
    products *= (both + only_reference) * (only_model + neither)
    excess = both * neither - only_model * only_reference
    if excess > 0:
        excess = max(excess - n / 2, 0)
    phi = excess / math.sqrt(products) if products else 0.0
    below = root(p1 - low1, high2 - p2, phi)
    above = root(high1 - p1, p2 - low2, phi)
    return Estimate(p1 - p2, p1 - p2 - below, p1 - p2 + above)


def score_interval(share: float, size: int) -> tuple[float, float]:
    """Return Wilson's interval without a correction, of which method 10 is made."""
    weight = Z * Z / size
    half = Z * math.sqrt(share * (1 - share) / size + weight / (4 * size)) / (1 + weight)
    centre = (share + weight / 2) / (1 + weight)
    return centre - half, centre + half


def root(first: float, second: float, phi: float) -> float:
    """Return the length of two sides that are correlated by `phi`."""
    return math.sqrt(max(first**2 - 2 * phi * first * second + second**2, 0.0))


def resampled(values: Sequence[Any], aggregate: Aggregate) -> np.ndarray:
    """Return the metric of `RESAMPLES` draws of as many questions, with replacement.

    Equal numbers of questions give equal draws, so that two models are drawn in pairs.
    """
    draws = np.random.default_rng(SEED).integers(len(values), size=(RESAMPLES, len(values)))
    return np.array([float(aggregate([values[i] for i in draw])) for draw in draws])


def middle(numbers: np.ndarray) -> tuple[float, float]:
    """Return the ends of the middle 95 % of numbers."""
    low, high = np.quantile(numbers, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)

"""95 % confidence intervals of figures that are averages over the windows of a text.

The tokens of a window depend on each other, and neighbouring windows often come from one document.
So consecutive windows are gathered in at most 30 clusters, whose means are taken for independent:
batch means [Schmeiser82], or clustered standard errors [Miller24, Sec. 2.2].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import torch
from jaxtyping import Float64
from torch import Tensor

CONFIDENCE = 0.95
CLUSTERS = 30  # more means of fewer windows would depend on each other [Schmeiser82]
FEWEST_WINDOWS = 10  # of which intervals are computed
FEWEST_BEYOND = 20  # tokens that a quantile with an interval leaves above it


@dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its 95 % confidence interval; None where there is no interval."""

    value: float
    low: float | None = None
    high: float | None = None

    def mapped(self, function: Callable[[float], float]) -> "Estimate":
        """Return the estimate of a rising function of the figure."""
        ends = (None if end is None else function(end) for end in (self.low, self.high))
        return Estimate(function(self.value), *ends)


def exp(nll: float) -> float:
    """Return e^nll, or infinity beyond the range of numbers."""
    return math.exp(nll) if nll < 700 else math.inf


def why_no_intervals(windows: int) -> str:
    """Return why so many windows give no intervals, or ""."""
    if windows >= FEWEST_WINDOWS:
        return ""
    return f"{windows} windows are too few, {FEWEST_WINDOWS} are needed"


def interval_sentence(windows: int, figures: dict[str, tuple[Estimate, str]]) -> str:
    """Return one line with the intervals of figures, or why there are none.

    - `figures`: what a figure is called -> its estimate, and the format of its numbers.
    """
    if why := why_no_intervals(windows):
        return f"no confidence intervals: {why}"
    parts = []
    for name, (figure, form) in figures.items():
        if figure.low is None or figure.high is None:
            parts.append(
                f"{name} {figure.value:{form}} (no interval: too few tokens are beyond it)"
            )
        else:
            parts.append(
                f"{name} {figure.value:{form}} ({figure.low:{form}} to {figure.high:{form}})"
            )
    clusters = min(windows, CLUSTERS)
    return f"95 % confidence intervals from {clusters} clusters of windows: {', '.join(parts)}"


def mean_estimate(values: Float64[Tensor, " windows"]) -> Estimate:
    """Return the mean with the t interval of at most `CLUSTERS` clusters of consecutive windows."""
    value, windows = float(values.mean()), len(values)
    if windows < FEWEST_WINDOWS or not math.isfinite(value):
        return Estimate(value)
    half = t_quantile(min(windows, CLUSTERS) - 1) * standard_error(values)
    return Estimate(value, value - half, value + half)


def share_estimate(hits: Float64[Tensor, " windows"], tokens: int) -> Estimate:
    """Return the mean of shares, each of the same number of tokens, with a score interval.

    - `tokens`: of all windows. The interval is that of the number of independent tokens that would
      have the standard error of the clusters, at most `tokens` [Franco19].
    """
    value, windows = float(hits.mean()), len(hits)
    if windows < FEWEST_WINDOWS:
        return Estimate(value)
    error = standard_error(hits)
    effective = min(tokens, value * (1 - value) / error**2) if error else tokens
    ends = wilson(value, float(effective), t_quantile(min(windows, CLUSTERS) - 1))
    return Estimate(value, *ends)


def quantile_estimate(values: Float64[Tensor, "windows scored"], share: float) -> Estimate:
    """Return the value that `share` of the tokens do not exceed, with Woodruff's interval.

    That is the interval of the share of tokens up to this value, read off the sorted values
    [Woodruff52]. There is none if fewer than `FEWEST_BEYOND` tokens exceed the quantile.
    """
    ordered = values.flatten().sort().values
    tokens = len(ordered)

    def at(part: float) -> float:
        # shares such as 0.999 · 1000 exceed a whole number by a rounding
        return float(ordered[min(max(math.ceil(part * tokens - 1e-9), 1), tokens) - 1])

    value = at(share)
    if (1 - share) * tokens < FEWEST_BEYOND - 1e-9:
        return Estimate(value)
    around = share_estimate((values <= value).double().mean(dim=1), tokens)
    if around.low is None or around.high is None:
        return Estimate(value)
    # ties may put more than `share` of the tokens at or below the quantile
    return Estimate(value, min(at(around.low), value), max(at(around.high), value))


def standard_error(values: Float64[Tensor, " windows"]) -> float:
    """Return the standard error of the mean, from the means of consecutive clusters."""
    clusters = values.tensor_split(min(len(values), CLUSTERS))
    # clusters of n and n + 1 windows count by their windows
    residuals = torch.stack([(b - values.mean()).sum() / len(values) for b in clusters])
    return float((residuals.square().sum() * len(clusters) / (len(clusters) - 1)).sqrt())


def wilson(share: float, size: float, t: float) -> tuple[float, float]:
    """Return the score interval of a share among `size`, corrected for continuity.

    [NewcombeSingle98, method 4]: what the exact interval of few hits is like, in closed form.

    - `t`: the quantile, of Student's or of the normal distribution.
    """
    hits, square = size * share, t * t

    def end(sign: int) -> float:
        inside = square + sign * 2 - 1 / size + 4 * share * (size - hits - sign)
        root = t * math.sqrt(max(inside, 0.0))
        return (2 * hits + square + sign * (1 + root)) / (2 * (size + square))

    return (max(end(-1), 0.0) if share > 0 else 0.0), (min(end(1), 1.0) if share < 1 else 1.0)


@cache
def t_quantile(freedom: int) -> float:
    """Return the t between whose negative and positive lies `CONFIDENCE` of Student's t."""
    if freedom > 1000:
        return NormalDist().inv_cdf((1 + CONFIDENCE) / 2)  # within 0.2 %
    low, high = 0.0, 20.0  # 12.7 is the largest, with one degree of freedom
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_share(middle, freedom) < CONFIDENCE else (low, middle)
    return low


def t_share(t: float, freedom: int) -> float:
    """Return how much of Student's t lies between -t and t [Abramowitz64, 26.7.3 and 26.7.4]."""
    angle = math.atan(t / math.sqrt(freedom))
    odd, cosine = freedom % 2, math.cos(angle)
    term, total = 1.0, 0.0
    for k in range(freedom // 2):
        total += term
        term *= (2 * k + 1 + odd) / (2 * k + 2 + odd) * cosine**2
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * cosine * total)
    return math.sin(angle) * total

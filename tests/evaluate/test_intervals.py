"""95 % intervals hold the truth in 95 % of synthetic texts of tokens that are not independent."""

import math

import pytest
import torch

from nearplane.evaluate import intervals
from nearplane.evaluate.intervals import (
    Estimate,
    mean_estimate,
    quantile_estimate,
    share_estimate,
    t_quantile,
    why_no_intervals,
    wilson,
)

TEXTS = 500
# of a covered share of 0.95 among 500 texts: four standard errors below, three above
LEAST, MOST = 0.95 - 4 * math.sqrt(0.95 * 0.05 / TEXTS), 0.95 + 3 * math.sqrt(0.95 * 0.05 / TEXTS)


def covered(estimates, truth):
    return sum(e.low <= truth <= e.high for e in estimates) / len(estimates)


def texts(windows, tokens, shape=4, seed=0):
    """Return KL-like numbers: exponential, times a factor of each window, Gamma(shape) / shape."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(TEXTS, windows, tokens + shape, generator=generator, dtype=torch.float64)
    exponential = -uniform.clamp(min=1e-300).log()
    return exponential[..., shape:] * exponential[..., :shape].mean(-1, keepdim=True)


def beyond(value, shape=4):
    """Return P(exponential · factor > value) = E exp(-value / factor), by its integral."""
    factor = torch.linspace(1e-6, 12, 200_001, dtype=torch.float64)
    log_density = shape * math.log(shape) - math.lgamma(shape)
    log_density = log_density + (shape - 1) * factor.log() - shape * factor
    return float(torch.trapezoid((log_density - value / factor).exp(), factor))


def exceeded_by(share, shape):
    low, high = 0.0, 100.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if beyond(middle, shape) > share else (low, middle)
    return low


@pytest.mark.parametrize("windows", [10, 24, 100])
def test_means_and_shares_of_clustered_tokens_are_covered(windows):
    made = texts(windows, 50)
    # averages of ten skewed factors are covered somewhat less, and that is all
    least = LEAST - 0.03 if windows == 10 else LEAST
    assert least <= covered(map_(mean_estimate, made.mean(-1)), 1.0) <= MOST
    hits = (made < 1.0).double().mean(-1)
    shares = [share_estimate(text, windows * 50) for text in hits]
    assert least <= covered(shares, 1 - beyond(1.0)) <= MOST
    # as if tokens were independent: what the clusters are for
    naive = [Estimate(0, *wilson(float(text.mean()), windows * 50, 1.96)) for text in hits]
    assert covered(naive, 1 - beyond(1.0)) < 0.85


def map_(estimate, made):
    return [estimate(text) for text in made]


@pytest.mark.parametrize("share, windows, tokens", [(0.99, 40, 50), (0.999, 40, 500)])
def test_tail_quantiles_are_covered(share, windows, tokens):
    made = texts(windows, tokens, 16)[: TEXTS // 2]
    truth = exceeded_by(1 - share, 16)
    found = [quantile_estimate(text, share) for text in made]
    assert LEAST - 0.01 <= covered(found, truth) <= 0.995
    # not because they are endless
    assert sum(e.high - e.low for e in found) / len(found) < 0.5 * truth


def test_neighbouring_windows_may_depend_on_each_other():
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(TEXTS, 240, generator=generator, dtype=torch.float64)
    for window in range(1, 240):
        noise[:, window] += 0.5 * noise[:, window - 1]
    assert LEAST - 0.03 <= covered(map_(mean_estimate, noise), 0.0) <= MOST
    alone = noise.std(-1) / math.sqrt(240) * 1.97
    assert float((noise.mean(-1).abs() <= alone).double().mean()) < 0.8


def test_quantiles_of_student_s_t_are_those_of_the_tables():
    tables = {1: 12.7062, 2: 4.3027, 5: 2.5706, 9: 2.2622, 10: 2.2281, 29: 2.0452, 1000: 1.9623}
    for freedom, expected in {**tables, 10**6: 1.95996}.items():
        assert t_quantile(freedom) == pytest.approx(expected, abs=6e-5)


def test_uneven_clusters_count_by_their_windows():
    values = torch.arange(43, dtype=torch.float64) % 7
    clusters = torch.tensor_split(values, 30)
    plain = sum(float((b - values.mean()).sum()) ** 2 for b in clusters) * 30 / 29 / 43**2
    assert intervals.standard_error(values) == pytest.approx(math.sqrt(plain))
    few = values[:12]
    assert intervals.standard_error(few) == pytest.approx(float(few.std()) / math.sqrt(12))


def test_what_is_too_little_gets_no_interval():
    values = torch.rand(9, 40, dtype=torch.float64)
    assert "9 windows are too few, 10 are needed" in why_no_intervals(9)
    assert not why_no_intervals(10)
    assert mean_estimate(values.mean(1)) == Estimate(float(values.mean(1).mean()))
    assert share_estimate(values.mean(1).round(), 360).low is None
    assert quantile_estimate(values, 0.99).low is None
    enough = torch.rand(10, 200, dtype=torch.float64)
    # twenty tokens beyond it, and two
    assert quantile_estimate(enough, 0.99).low is not None
    assert quantile_estimate(enough, 0.999) == Estimate(float(enough.flatten().kthvalue(1998)[0]))


def test_no_variation_is_no_certainty():
    every = share_estimate(torch.ones(12, dtype=torch.float64), 600)
    assert every.value == every.high == 1 and 0.98 < every.low < 1
    same = mean_estimate(torch.zeros(12, dtype=torch.float64))
    assert (same.value, same.low, same.high) == (0, 0, 0)

"""Comparisons of two models' answers: the tests by their definitions, and how often they err."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearplane.evaluate import paired_answers
from nearplane.evaluate.paired_answers import compared, mcnemar, newcombe, score


def mean(values):
    return sum(values) / len(values)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_binomial_test_of_a_fair_coin(first, second):
    tosses = first + second
    chance = [math.comb(tosses, k) / 2**tosses for k in range(tosses + 1)]
    # all outcomes as unlikely as this one, or more so
    expected = sum(p for p in chance if p <= chance[first] * (1 + 1e-9))
    assert mcnemar(first, second) == pytest.approx(min(1.0, expected))
    assert mcnemar(first, second) == mcnemar(second, first)


def test_differences_are_those_of_the_paper():
    # examples of [NewcombePaired98], method 10
    for table, low, high in [
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((54, 0, 0, 0), -0.0664, 0.0664),
        ((30, 0, 0, 24), -0.0358, 0.0358),
    ]:
        found = newcombe(*table)
        assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


def pairs(questions, tables, generator):
    """Return answers of two models, right with 0.6 and 0.5, that agree more than by chance."""
    drawn = generator.choice(4, p=[0.4, 0.2, 0.1, 0.3], size=(tables, questions))
    return (drawn < 2).astype(int), (drawn % 2 == 0).astype(int)


def test_intervals_hold_the_truth_and_tests_find_what_is_there():
    generator = np.random.default_rng(5)
    found = [compared(*pair, mean) for pair in zip(*pairs(60, 400, generator), strict=True)]
    covered = mean([f.difference.low <= 0.1 <= f.difference.high for f in found])
    assert 0.91 <= covered <= 0.99
    # a difference that is there is found more often, the more questions there are
    many = [compared(*pair, mean) for pair in zip(*pairs(600, 50, generator), strict=True)]
    assert mean([f.p < 0.05 for f in found]) < 0.5 < mean([f.p < 0.05 for f in many])


def test_equal_models_differ_by_chance_only():
    generator = np.random.default_rng(6)
    right = generator.random((300, 2, 80)) < 0.5
    rejected = mean([compared(*pair.astype(int), mean).p < 0.05 for pair in right])
    assert rejected < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_a_bootstrap_is_paired(monkeypatch):
    monkeypatch.setattr(paired_answers, "RESAMPLES", 200)
    generator = np.random.default_rng(7)
    reference = generator.normal(size=50)
    model = reference + 0.1 + 0.05 * generator.normal(size=50)
    found = compared(list(model), list(reference), mean)
    # questions differ by 1 and answers by 0.05: only a paired test finds 0.1
    assert found.p <= 2 / 200 and 0.05 < found.difference.low < found.difference.high < 0.15
    assert "bootstrap" in found.test and found.only_model is None
    assert compared(list(model), list(model), mean).p == 1.0


def test_metrics_that_are_no_means_are_aggregated_as_the_task_says(monkeypatch):
    monkeypatch.setattr(paired_answers, "RESAMPLES", 100)
    values = [(-float(i), i) for i in range(1, 21)]
    found = score(values, lambda pairs: sum(a for a, _ in pairs) / sum(b for _, b in pairs))
    assert (found.value, found.low, found.high) == pytest.approx((-1, -1, -1))
    few = score(values[:4], lambda pairs: float(len(pairs)))
    assert (few.value, few.low) == (4, None)
    assert compared(values[:4], values[:4], lambda pairs: 1.0).p is None

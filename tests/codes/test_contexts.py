import numpy as np
import pytest
from hypothesis import given, settings

from nearplane.codes.contexts import (
    CLASSES,
    MOST_LENGTHS,
    WIDEST,
    candidates,
    choose_span,
    joint_counts,
    spreads,
)
from tests.codes.draw import INT32, gaussian, laws, matrices, spread


def plain_counts(code: np.ndarray, span: int, contexts) -> np.ndarray:
    """Return how often each symbol occurs in each context, one integer at a time."""
    result = np.zeros((contexts.count, 2 * span + 2), np.int64)
    for i, j in np.ndindex(code.shape):
        z = int(code[i, j])
        symbol = z + span if abs(z) <= span else 2 * span + 1
        result[int(contexts.row[i]) + int(contexts.column[j]), symbol] += 1
    return result


@given(matrices(300).filter(np.size))
@settings(laws, max_examples=50)
def test_every_candidate_counts_every_integer(code):
    span = choose_span(code)
    joint = joint_counts(code, span, split=True)
    for way in candidates(joint):
        assert max(way.contexts.row_classes, way.contexts.column_classes) <= CLASSES
        assert way.contexts.count * (2 * span + 1) <= MOST_LENGTHS or way.contexts.count == 1
        assert np.array_equal(way.by_context(), plain_counts(code, span, way.contexts))


def test_the_first_candidate_is_one_context():
    ways = list(candidates(joint_counts(spread(0, 60, 80, 2.0, 1.0), 20, split=True)))
    assert ways[0].contexts.count == 1 and len(ways) == 10
    assert len(list(candidates(joint_counts(np.zeros((5, 5), np.int32), 3, split=True)))) == 1


def test_pieces_of_a_large_matrix_add_up():
    code = spread(1, 700, 900, 2.0, 0.5)
    joint = joint_counts(code, 9, split=True)
    assert joint.counts.sum() == code.size
    assert joint.counts[:, :, -1].sum() == (np.abs(code) > 9).sum()
    assert joint.counts[:, :, 9].sum() == (code == 0).sum()


def test_spreads_are_those_that_made_the_matrix():
    rng = np.random.default_rng(0)
    row, column = rng.normal(size=300), rng.normal(size=400)
    scale = 20 * np.exp2(row[:, None] + column)
    a, b = spreads(np.rint(rng.normal(size=scale.shape) * scale).astype(np.int32))
    # log2 of a root mean square of 300 Gaussians scatters by 0.06
    assert np.std(a - row) < 0.1 and np.std(b - column) < 0.1


def test_classes_rise_with_spread():
    code = np.rint(
        gaussian(0, 64 * 500, 1000).reshape(64, 500) * np.exp2(-np.arange(64) / 10)[:, None]
    )
    contexts = joint_counts(code.astype(np.int32), 2000, split=True).contexts
    assert (np.diff(contexts.row.astype(int)) <= 0).all()
    # 6.3 octaves in quarters; 64 rows know a column's spread to 0.13 octaves
    assert 20 <= contexts.row_classes <= 27 and contexts.column_classes <= 6


def test_one_row_far_from_the_others_does_not_use_up_the_classes():
    code = spread(0, 100, 200, 2.0, 0.5)
    code[7] *= 5000
    contexts = joint_counts(code, 30000, split=True).contexts
    assert len(np.unique(contexts.row)) > 1


@pytest.mark.parametrize(
    "values, low, high",
    [
        ([0] * 50, 1, 1),
        ([5] * 50, 5, 5),
        ([1] * 5000 + [-2] * 4000 + [900], 2, 2),
        (list(range(-90, 91)) * 9, 60, 90),
        ([INT32.min, INT32.max] * 50, 1, 1),
        ([WIDEST] * 30_000, WIDEST, WIDEST),
    ],
)
def test_a_span_keeps_what_is_frequent(values, low, high):
    assert low <= choose_span(np.array([values], np.int32)) <= high

"""Quantiles of a layer's pivots."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from nearplane.walk.report import QUANTILES, log2_quantiles


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60))
def test_quantiles_rise_from_the_least_to_the_largest(pivots):
    found = log2_quantiles(torch.tensor(pivots, dtype=torch.float64))
    expected = torch.tensor(pivots, dtype=torch.float64).log2()
    assert len(found) == QUANTILES and found == sorted(found)
    assert abs(found[0] - float(expected.min())) <= 5.1e-4  # three digits behind the point
    assert abs(found[-1] - float(expected.max())) <= 5.1e-4
    places = torch.linspace(0, 1, QUANTILES, dtype=torch.float64)
    middle = torch.quantile(expected, places) - torch.tensor(found, dtype=torch.float64)
    assert float(middle.abs().max()) <= 5.1e-4

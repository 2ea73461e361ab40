"""K-best: what it minimises, that one path is greedy, that many paths find the best of all."""

import itertools

import pytest
import torch

from nearplane.lattice import search
from nearplane.lattice.rate_aware import rate_aware_plane
from nearplane.lattice.search import k_best, path_costs
from tests.lattice.test_rate_aware import on_basis, prices


@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 129])
def test_one_path_is_rate_aware_nearest_plane(n):
    target, factor, step = on_basis(n, 200, n)
    costs = prices(n, 200, n, 0.1155)
    greedy = rate_aware_plane(target, factor, step, costs)
    assert torch.equal(k_best(target, factor, step, costs, 1), greedy)


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_enough_paths_find_the_cheapest_of_all_branches(slope):
    """With 2^n paths nothing is dropped: the result is the best of every sequence of neighbours."""
    n, rows = 5, 30
    target, factor, step = on_basis(2, rows, n)
    costs = prices(2, rows, n, slope)
    found = k_best(target, factor, step, costs, 2**n)
    assert torch.equal(found, exhaustive(target, factor, step, costs))


def exhaustive(target, factor, step, costs):
    """Return the cheapest codes among all sequences of lower and upper neighbours."""
    rows, n = target.shape
    ways = []
    for ups in itertools.product((0, 1), repeat=n):
        code = torch.zeros(rows, n, dtype=torch.int32)
        for j in reversed(range(n)):
            error = target[:, j + 1 :] - code[:, j + 1 :] * step[:, j + 1 :]
            best = (target[:, j] + error @ factor[j, j + 1 :] / factor[j, j]) / step[0, j]
            code[:, j] = (best.floor() + ups[j]).int()
        ways.append(code)
    spent = torch.stack([path_costs(target, code, factor, step, costs) for code in ways])
    return torch.stack(ways)[spent.argmin(0), torch.arange(rows)]


def test_more_paths_cost_less():
    """In total over 200 rows, at every doubling; single rows may lose."""
    target, factor, step = on_basis(4, 200, 96)
    costs = prices(4, 200, 96, 0.1155)
    spent = [
        path_costs(target, k_best(target, factor, step, costs, paths), factor, step, costs).sum()
        for paths in (1, 2, 4, 8, 16)
    ]
    assert spent == sorted(spent, reverse=True)
    # 16 paths were worth 2 % to 10 % of cost on the layers of FRONTIER's table
    assert spent[-1] < 0.99 * spent[0]


@pytest.mark.parametrize("leaf", [1, 4, 32])
def test_the_width_of_leaves_does_not_matter(leaf, monkeypatch):
    target, factor, step = on_basis(9, 50, 70)
    costs = prices(9, 50, 70, 0.2)
    expected = k_best(target, factor, step, costs, 5)
    monkeypatch.setattr(search, "LEAF", leaf)
    assert torch.equal(k_best(target, factor, step, costs, 5), expected)


def test_nothing_to_search():
    target, factor, step = on_basis(1, 4, 3)
    costs = prices(1, 0, 3, 0.1)
    assert k_best(target[:0], factor, step, costs, 4).shape == (0, 3)

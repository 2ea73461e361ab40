"""What leaves in Triton round, and the references that they must agree with, integer by integer."""

import torch
from torch import Tensor

from nearplane import lattice
from nearplane.kernels.gpu import k_best, nearest_plane
from nearplane.lattice import Levels, Prices
from nearplane.lattice.search import Beam, ScaledFactor, searched
from tests.problem import problem, steps


def prices_of(rows: int, n: int, span: int, slope: float = 0.11552453009332421) -> Prices:
    """Return random code lengths in seven contexts."""
    random = torch.Generator().manual_seed(span)
    length = 6 * torch.rand(7, 2 * span + 1, generator=random)
    row = torch.randint(0, 3, (rows,), generator=random)
    return Prices(length, row, torch.randint(0, 5, (n,), generator=random), slope)


def on_lattice(rows: int, n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return a weight and a factor."""
    p = problem(n, rows, n)
    factor = lattice.factor(p.hessian, torch.arange(n), 0.01)
    return p.weight.to(dtype), factor.to(dtype)


def levels_agree(rows: int, n: int, levels: Levels) -> None:
    weight, factor = on_lattice(rows, n)
    step = steps(n, rows, n, "element").abs()
    code = nearest_plane.nearest_plane_among(weight, factor, step, levels)
    expected = lattice.nearest_plane_among.reference(weight, factor, step, levels)
    assert code.dtype == torch.int32 and torch.equal(code, expected)


def halves_agree() -> None:
    """Numbers half-way between two levels take the lower one."""
    halves = torch.arange(-9, 10, dtype=torch.float64)[:, None] / 2
    one, step = torch.ones(1, 1, dtype=torch.float64), torch.ones_like(halves)
    levels = Levels.of((-4, -1, 0, 3), halves)
    code = nearest_plane.nearest_plane_among(halves, one, step, levels)
    assert torch.equal(code, lattice.nearest_plane_among.reference(halves, one, step, levels))


def outliers_agree(rows: int, n: int, dtype: torch.dtype = torch.float64) -> None:
    """In float32 some 1e-4 of the codes may differ, of a few hundred none."""
    weight, factor = on_lattice(rows, n, dtype)
    weight[0, 0] = 1e6  # beyond float16
    step = steps(n, rows, n, "element").abs().to(dtype)
    found = nearest_plane.nearest_plane_with_outliers(weight, factor, step, -2, 1)
    expected = lattice.nearest_plane_with_outliers.reference(weight, factor, step, -2, 1)
    code, outlier, is_outlier = zip(found, expected, strict=True)
    assert torch.equal(*code) and torch.equal(*is_outlier)
    near = (outlier[0].double() - outlier[1].double()).abs()
    # a number on the edge between two of float16 may fall on either side
    most = 0 if dtype == torch.float64 else 2.0**-9
    assert (near <= most * outlier[1].double().abs()).all()


def searches_agree(rows: int, n: int, paths: int, span: int) -> None:
    weight, factor = on_lattice(rows, n)
    step, prices = steps(n, rows, n, "column").abs(), prices_of(rows, n, span)
    code = k_best.k_best(weight, factor, step, prices, paths)
    expected = lattice.k_best.reference(weight, factor, step, prices, paths)
    assert code.dtype == torch.int32 and torch.equal(code, expected)


def ties_agree() -> None:
    """Quarters, and half of an error in the next column: numbers are exact, some costs equal."""
    rows, n = 8, 7
    quarters = torch.randint(-6, 7, (rows, n), generator=torch.Generator().manual_seed(1)) / 4.0
    quarters[:, -1] = 0.5
    target, step = quarters.double(), torch.ones(1, n, dtype=torch.float64)
    next_one = torch.ones(n, n, dtype=torch.float64).triu(1).tril(1)
    factor = torch.eye(n, dtype=torch.float64) + next_one / 2
    prices, scaled = prices_of(rows, n, 2, 0.0), ScaledFactor.of(factor, step, torch.float64)
    for paths in (2, 3, 8):
        found = k_best.k_best(target, factor, step, prices, paths)
        assert torch.equal(found, searched(Stable, target, step, prices, paths, scaled))


class Stable(Beam):
    """A search that keeps, of equal costs, that of the earlier path, then the lower neighbour."""

    def branch(self, j: int, best: Tensor) -> tuple[Tensor, Tensor]:
        below = best.floor()
        neighbours = torch.stack([below, below + 1], 2)
        costs = self.cost[:, :, None] + (best[:, :, None] - neighbours) ** 2
        cost, place = costs.flatten(1).sort(dim=1, stable=True)
        self.cost, place = cost[:, : self.paths], place[:, : self.paths]
        return below.gather(1, place // 2) + place % 2, place // 2

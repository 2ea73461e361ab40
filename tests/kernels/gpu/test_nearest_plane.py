"""Leaves of rounding in Triton, interpreted, against the references: the same integers.

What a leaf is to write is filled with wrong numbers before.
"""

import pytest
import torch

from tests.kernels.gpu.interpreted import only_here

only_here()

from nearplane import lattice, rows  # noqa: E402
from nearplane.codes.block_types import UNEVEN  # noqa: E402
from nearplane.kernels.gpu import k_best as ours_k_best  # noqa: E402
from nearplane.kernels.gpu import nearest_plane as ours  # noqa: E402
from nearplane.lattice import Levels  # noqa: E402
from nearplane.precision import exact_products  # noqa: E402
from tests.kernels.gpu.rounding_cases import (  # noqa: E402
    halves_agree,
    levels_agree,
    outliers_agree,
    prices_of,
    searches_agree,
    ties_agree,
)
from tests.problem import KINDS, Problem, problem, steps  # noqa: E402

LIMITS = ((None, None), (-3, 2), (-2, None), (None, 1))
SIZES = ((1, 1), (33, 70), (9, 32), (1, 33), (65, 3))


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What `torch.empty_like` gives is as wrong as can be."""
    empty_like = torch.empty_like

    def filled(like, **options):
        made = empty_like(like, **options)
        return made.fill_(torch.nan if made.is_floating_point() else 119)

    monkeypatch.setattr(torch, "empty_like", filled)


def factor(p: Problem, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return lattice.factor(p.hessian, torch.arange(len(p.hessian)), 0.01).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows, n", SIZES)
def test_codes_are_those_of_the_reference(rows, n, kind):
    p, step = problem(n, rows, n), steps(n, rows, n, kind)
    for limits in LIMITS[KINDS.index(kind) % 2 :: 2]:
        code = ours.nearest_plane(p.weight, factor(p), step, *limits)
        expected = lattice.nearest_plane.reference(p.weight, factor(p), step, *limits)
        assert code.dtype == torch.int32 and torch.equal(code, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_in_float32(kind):
    """2,560 codes; some 1e-4 of them may differ (tests/lattice/test_nearest_plane.py)."""
    p, step = problem(3, 40, 64, dtype=torch.float32), steps(3, 40, 64, kind)
    code = ours.nearest_plane(p.weight, factor(p, torch.float32), step, -4, 3)
    expected = lattice.nearest_plane.reference(p.weight, factor(p, torch.float32), step, -4, 3)
    assert (code != expected).double().mean() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_halves_are_rounded_to_even(dtype):
    wished = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 0.49999997, 2.0**22 + 0.5])
    target = wished.to(dtype)[:, None]
    code = ours.nearest_plane(target, torch.ones(1, 1, dtype=dtype), torch.ones(1, 1, dtype=dtype))
    assert code[:, 0].tolist() == [-2, -2, 0, 0, 2, 2, 4, 0, 2**22]
    large = torch.tensor([[2.0**23 + 1], [-(2.0**30)]], dtype=dtype)
    code = ours.nearest_plane(large, torch.ones(1, 1, dtype=dtype), torch.ones(2, 1, dtype=dtype))
    assert code[:, 0].tolist() == [2**23 + 1, -(2**30)]


@pytest.mark.parametrize("rows, n", SIZES)
@pytest.mark.parametrize("span", [0, 2, 10])
def test_rate_aware_codes_are_those_of_the_reference(rows, n, span):
    p, prices = problem(n, rows, n), prices_of(rows, n, span)
    for kind in ("scalar", "column"):
        step = steps(n, rows, n, kind).abs().expand(1, n)
        code = ours.rate_aware_plane(p.weight, factor(p), step, prices)
        expected = lattice.rate_aware_plane.reference(p.weight, factor(p), step, prices)
        assert torch.equal(code, expected)


@pytest.mark.parametrize(
    "rows, n, values",
    [(1, 1, UNEVEN), (33, 40, UNEVEN), (9, 32, (-3, 5)), (1, 33, range(-128, 128)), (65, 3, (7,))],
)
def test_levels_are_those_of_the_reference(rows, n, values):
    levels_agree(rows, n, Levels.of(values, torch.empty(0, dtype=torch.float64)))


def test_levels_that_are_neighbours_and_halves_between_levels():
    levels_agree(5, 35, Levels(-4, 3))
    halves_agree()


@pytest.mark.parametrize("rows, n, dtype", [(33, 40, torch.float64), (9, 32, torch.float32)])
def test_outliers_are_those_of_the_reference(rows, n, dtype):
    outliers_agree(rows, n, dtype)


@pytest.mark.parametrize(
    "rows, n, paths, span",
    [(1, 1, 2, 4), (9, 32, 8, 0), (13, 33, 3, 4), (5, 70, 4, 2), (2, 9, 7, 4)],
)
def test_searches_are_those_of_the_reference(rows, n, paths, span):
    searches_agree(rows, n, paths, span)


@pytest.mark.long
@pytest.mark.parametrize("paths", [1, 2, 5, 8])
def test_searches_of_every_width(paths):
    for n in range(1, 34):
        searches_agree(9, n, paths, 3)


def test_of_equal_costs_a_search_keeps_that_of_the_earlier_path():
    ties_agree()


def test_rows_are_shared_out_and_rounded_in_pieces(monkeypatch):
    """So several processes round some rows each; the integers are the same."""
    calls = []
    monkeypatch.setattr(ours, "start", lambda launch, **tensors: calls.append(launch))
    p = problem(1, 3 * rows.TILE, 4)
    ours.nearest_plane(p.weight, factor(p), torch.ones(1, 1))
    ours.rate_aware_plane(p.weight, factor(p), torch.ones(1, 4), prices_of(len(p.weight), 4, 1))
    assert [launch.numbers["rows"] for launch in calls] == [2 * rows.TILE, rows.TILE] * 2
    calls.clear()
    monkeypatch.setattr(rows.in_parts, "versions", {"two": (lambda *_: True, in_two)})
    ours.nearest_plane(p.weight, factor(p), torch.ones(1, 1))
    assert [launch.numbers["rows"] for launch in calls] == [rows.TILE, 2 * rows.TILE]


def in_two(work, count, grain):
    return [work(slice(0, grain)), work(slice(grain, count))]


def test_float32_products_are_exact_meanwhile_and_as_before_afterwards():
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    try:
        for allowed in ("tf32", "ieee"):
            products.fp32_precision = allowed
            with pytest.raises(KeyError), exact_products(torch.device("cuda")):
                assert products.fp32_precision == "ieee"
                raise KeyError
            assert products.fp32_precision == allowed
    finally:
        products.fp32_precision = before


def test_the_versions_serve_gpus_only():
    """On a CPU the reference answers, whatever is registered."""
    served = (
        lattice.nearest_plane,
        lattice.nearest_plane_among,
        lattice.nearest_plane_with_outliers,
        lattice.rate_aware_plane,
        lattice.k_best,
    )
    assert all("triton" in each.versions for each in served)
    p = problem(1, 3, 4)
    assert not ours.on_gpu(p.weight, factor(p))
    assert not ours_k_best._serves(p.weight, factor(p), torch.ones(1, 4), prices_of(3, 4, 1), 3)

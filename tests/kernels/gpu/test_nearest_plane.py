"""Leaves of nearest plane in Triton, interpreted, against the reference: the same integers."""

import pytest
import torch

from tests.kernels.gpu.interpreted import only_here

only_here()

from nearplane import lattice  # noqa: E402
from nearplane.kernels.gpu import nearest_plane as ours  # noqa: E402
from tests.problem import KINDS, Problem, problem, steps  # noqa: E402

LIMITS = ((None, None), (-3, 2), (-2, None), (None, 1))
SIZES = ((1, 1), (33, 70), (9, 32), (1, 33), (65, 3))


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
    p, random = problem(n, rows, n), torch.Generator().manual_seed(span)
    prices = lattice.Prices(
        6 * torch.rand(7, 2 * span + 1, generator=random),
        torch.randint(0, 3, (rows,), generator=random),
        torch.randint(0, 5, (n,), generator=random),
    )
    for kind in ("scalar", "column"):
        step = steps(n, rows, n, kind).abs().expand(1, n)
        code = ours.rate_aware_plane(p.weight, factor(p), step, prices)
        expected = lattice.rate_aware_plane.reference(p.weight, factor(p), step, prices)
        assert torch.equal(code, expected)


def test_float32_products_are_exact_meanwhile_and_as_before_afterwards():
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    try:
        for allowed in ("tf32", "ieee"):
            products.fp32_precision = allowed
            with pytest.raises(KeyError), ours.full_precision():
                assert products.fp32_precision == "ieee"
                raise KeyError
            assert products.fp32_precision == allowed
    finally:
        products.fp32_precision = before


def test_the_versions_serve_gpus_only():
    """On a CPU the reference answers, whatever is registered."""
    assert {"triton"} <= set(lattice.nearest_plane.versions) & set(
        lattice.rate_aware_plane.versions
    )
    p = problem(1, 3, 4)
    assert not ours._serves(p.weight, factor(p))

"""The search for the step that meets a rate: METHOD 14, number 12."""

import math

import pytest
import torch

from nearplane import codes
from nearplane.lattice import basis, nearest_integer, nearest_plane
from nearplane.methods import HPTQ
from nearplane.methods.rate import Budget, RateError, drawn_pull, first_scale, sample_rows
from nearplane.methods.scale_search import CodedMatrix, run_searches, search_scale
from tests.problem import problem

GAUSS = problem(0, 256, 256).weight.float()  # 65,536 independent standard normals
HERE = torch.arange(256)


def attempt(scale, some):
    code = nearest_integer(GAUSS[some] / scale, None, None).int()
    return CodedMatrix(code, torch.full((1, 1), scale))


def met(budget, start, invperm=HERE, attempt=attempt):
    """Return what one search finds."""
    found = run_searches(
        [search_scale(budget, start, invperm)], lambda t: {0: attempt(t[0].scale, t[0].rows)}
    )
    return found[0]


def rate(coded) -> float:
    """Return bits per weight of the record, its directory entry counted."""
    record, _ = codes.pack(coded.code, coded.step, coded.code.shape[1], None, codes.Huffman())
    return 8 * (len(record) + codes.ENTRY_BYTES) / coded.code.numel()


def start_of(bpw: float) -> float:
    return first_scale(Budget(bpw, 256, 256, 1), GAUSS, None)


def test_first_scale_of_a_gaussian():
    """H(round(w / s)) ≈ ½ log₂(2πe) − log₂ s; Huffman codes and the record's own bytes come on top.

    At 4 bits those are 0.047 bits (METHOD 12) and 8 (36 + 112 + about 60) / 65536 = 0.025.
    """
    scale = start_of(4.0)
    assert abs(math.log2(scale) - (math.log2(2 * math.pi * math.e) / 2 - 4 + 0.072)) < 0.02
    assert abs(rate(attempt(scale, slice(None))) - 4.0) < 0.005


@pytest.mark.parametrize("power", [-40, -3, 0, 11, 70])
def test_first_scale_is_equivariant(power):
    budget = Budget(3.0, 256, 256, 1)
    scaled = first_scale(budget, GAUSS * 2.0**power, None)
    assert math.isclose(scaled, first_scale(budget, GAUSS, None) * 2.0**power, rel_tol=1e-6)


@pytest.mark.parametrize("bpw", [2.0, 3.0, 4.5])
def test_the_drawn_pull_predicts_nearest_planes_rate(bpw):
    """First guess and sweep agree to 0.05 bits; coarse steps need the pull for that."""
    p = problem(3, 256, 256, condition=1e3)
    of = basis(p.hessian, "activation", 0.01)
    target, factor = p.weight[:, of.columns], of.factor
    budget = Budget(bpw, 256, 256, 1)

    def rate_at(scale):
        step = torch.full((1, 1), scale, dtype=torch.float64)
        return budget.estimated_rate(nearest_plane(target, factor, step))

    missed = abs(rate_at(first_scale(budget, target, drawn_pull(factor, 256))) - bpw)
    assert missed < 0.05
    if bpw == 2.0:
        assert missed < rate_at(first_scale(budget, target, None)) - bpw


@pytest.mark.parametrize("bpw", [1.5, 2.125, 3.125, 7.0])
def test_search_scale_ends_just_under_the_target(bpw):
    coded, (record, code_bytes) = met(Budget(bpw, 256, 256, 1), start_of(bpw))
    assert bpw - 0.01 <= rate(coded) <= bpw
    expected, expected_bytes = coded.packed()
    assert torch.equal(record, expected) and code_bytes == expected_bytes


def test_search_scale_near_one_bit():
    """Where Huffman codes end, the rate hardly falls with the step: only the limit is sure."""
    coded, _ = met(Budget(1.2, 256, 256, 1), start_of(1.2))
    assert 1.15 <= rate(coded) <= 1.2


@pytest.mark.parametrize("start", [1e-4, 1e-2, 1.0, 100.0])
def test_search_scale_recovers_from_a_bad_start(start):
    coded, _ = met(Budget(3.0, 256, 256, 1), start)
    assert 2.95 <= rate(coded) <= 3.0


def test_search_scale_packs_the_columns_where_they_belong():
    """An attempt's columns are the basis's; the record's are the original ones."""
    invperm = torch.randperm(256, generator=torch.Generator().manual_seed(1))
    coded, (record, _) = met(Budget(3.0, 256, 256, 1), 0.4, invperm)
    scale = float(coded.step)
    assert torch.equal(coded.code, attempt(scale, slice(None)).code[:, invperm])
    assert torch.equal(codes.unpack(record).code, coded.code)
    assert rate(coded) <= 3.0


def test_the_estimated_rate_is_near_the_records():
    coded, budget = attempt(0.4, slice(None)), Budget(3.0, 256, 256, 1)
    assert budget.rate_of_bytes(0) == 8 * codes.ENTRY_BYTES / 65536
    assert abs(budget.estimated_rate(coded.code) - rate(coded)) < 0.01
    # a quarter of the rows: the entropy of 16,384 samples is known to about 0.01 bits
    assert abs(budget.estimated_rate(coded.code[::4]) - rate(coded)) < 0.05


def test_the_rate_falls_as_steps_grow():
    """Law 12, within 0.003 bits: Huffman lengths move in whole bits."""
    rates = [rate(attempt(0.1 * 1.1**k, slice(None))) for k in range(30)]
    assert all(b <= a + 0.003 for a, b in zip(rates, rates[1:], strict=False))


def test_several_steps_cost_two_bytes_each():
    code = attempt(0.4, slice(None)).code
    one, many = Budget(3.0, 256, 256, 1), Budget(3.0, 256, 256, 256)
    assert math.isclose(
        many.estimated_rate(code) - one.estimated_rate(code), 8 * (2 * 256 - 4) / 65536
    )


def test_a_matrix_too_small_for_its_header():
    with pytest.raises(RateError, match="4 x 5: the nearest that can is") as caught:
        Budget(3.0, 4, 5, 1).check()
    nearest = float(str(caught.value).rsplit(" ", 1)[1])
    Budget(nearest, 4, 5, 1).check()
    with pytest.raises(RateError):
        Budget(nearest - 0.02, 4, 5, 1).check()


def test_a_rate_that_no_step_reaches():
    """Codes that never shrink: the search ends and says so."""
    fixed = attempt(0.01, slice(None))
    with pytest.raises(RateError, match="no step was found"):
        budget = Budget(3.0, 256, 256, 1)
        met(budget, 1.0, attempt=lambda scale, some: CodedMatrix(fixed.code[some], fixed.step))


def test_matrices_that_share_a_basis_get_what_each_would_get_alone():
    """Sweeps in common change no integer: rows do not know of each other."""
    p = problem(5, 300, 128, condition=1e3)
    of = basis(p.hessian, "activation", 0.01)
    weights = [p.weight[:200], p.weight[200:260] * 7, p.weight[260:]]
    method = HPTQ(bpw=4.0)
    for together, weight in zip(method.together(weights, of), weights, strict=True):
        assert torch.equal(together.record, method(weight, of).record)


def test_columns_move_with_their_steps():
    code, step = torch.arange(6, dtype=torch.int32).reshape(2, 3), torch.tensor([[1.0, 2.0, 3.0]])
    moved = CodedMatrix(code, step, step * 2).permuted(torch.tensor([2, 0, 1]))
    assert moved.code.tolist() == [[2, 0, 1], [5, 3, 4]]
    assert moved.step.tolist() == [[3, 1, 2]] and moved.decision_step.tolist() == [[6, 2, 4]]
    assert CodedMatrix(code, step[:, :1]).permuted(torch.tensor([2, 0, 1])).step.tolist() == [[1]]


@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 10**6), (7, 100), (5000, 64), (100, 4096)])
def test_sample_rows(rows, columns):
    some = torch.arange(rows)[sample_rows(rows, columns)]
    assert len(some) * columns >= min(rows * columns, 60_000)
    assert len(some) <= max(1, rows)

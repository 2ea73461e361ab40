"""How a product may be called: strides, NaN and infinity, threads, memory around the result."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nearplane.kernels import cpu
from nearplane.kernels.cpu import linear, trial
from nearplane.kernels.cpu.library import TYPES, library
from tests.kernels.accuracy import assert_product
from tests.kernels.forms import COLUMNS, FORMS, ROWS, case

# one form for every path through the kernels
PATHS = [
    "huffman, one step, outliers",
    "rans, low bits in a plane",
    "rans, columns on a ladder",
    "dense, 3 bits, groups, outliers 0.05",
    "dense, 8 bits, a step a row",
]
TIMED = linear._most_rows  # as it is without conftest.py
every_path = pytest.mark.parametrize("form", PATHS)
every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)
POISON = 0x7D  # of every byte: a number in float16 and in bfloat16 that no product here gives


def activations(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def views(dtype: torch.dtype) -> dict[str, Tensor]:
    """Return activations that lie in memory as they may."""
    wide, flat = activations(6, 2 * COLUMNS, dtype=dtype), activations(3 * COLUMNS + 1, dtype=dtype)
    return {
        "transposed": activations(COLUMNS, 4, dtype=dtype).T,
        "expanded": activations(1, COLUMNS, dtype=dtype).expand(5, COLUMNS),
        "one number": activations(1, 1, dtype=dtype).expand(2, COLUMNS),
        "every other column": wide[:, ::2],
        "every other row": wide[::2, :COLUMNS],
        "not aligned": flat[1:].view(3, COLUMNS),
        "one row, not aligned": flat[1 : COLUMNS + 1],
        "permuted": activations(2, COLUMNS, 3, dtype=dtype).permute(0, 2, 1),
        "of four dimensions": activations(2, 1, 3, COLUMNS, dtype=dtype),
        "none": activations(0, COLUMNS, dtype=dtype),
        "none in the middle": activations(2, 0, COLUMNS, dtype=dtype),
    }


@every_path
@every_type
def test_strides_do_not_matter(form, dtype, isa):
    made = case(form)
    for name, x in views(dtype).items():
        y = made.product(x)
        assert y.shape == (*x.shape[:-1], ROWS) and y.dtype == dtype, name
        assert torch.equal(y, made.product(x.contiguous().clone())), name
    # torch's own product may add in another order
    many = activations(COLUMNS, 70, dtype=dtype).T
    assert_product(made, many, made.product(many))


@every_path
@every_type
@pytest.mark.parametrize("batch", [1, 3, 65])
def test_what_is_not_finite_stays_in_its_row(form, dtype, batch, isa):
    made, x = case(form), activations(batch, COLUMNS, dtype=dtype)
    clean, hit = made.product(x), batch // 2
    others = torch.arange(batch) != hit
    for bad in (torch.nan, torch.inf, -torch.inf):
        for column in (0, 77, COLUMNS - 1):
            spoiled = x.clone()
            spoiled[hit, column] = bad
            y = made.product(spoiled)
            assert torch.equal(y[others], clean[others])
            assert y[hit].isnan().all() if bad != bad else not y[hit].isfinite().any()


def test_sums_beyond_float16_are_infinite(isa):
    made, x = case("huffman, columns in float32"), torch.zeros(2, COLUMNS, dtype=torch.float16)
    x[:, 0] = torch.finfo(torch.float16).max
    expected = (x.double() @ made.weight.T).half()
    assert expected.isinf().any() and torch.equal(made.product(x).isinf(), expected.isinf())
    assert torch.equal(made.product(x).sign(), expected.sign())


@pytest.mark.parametrize("form", FORMS)
@every_type
def test_every_element_is_written_and_nothing_else(form, dtype, isa):
    made, lib = case(form), library()
    for batch in (0, 1, 3, 8):
        x, count = activations(batch, COLUMNS, dtype=dtype), batch * ROWS
        guarded = torch.full(((count + 64) * dtype.itemsize,), POISON, dtype=torch.uint8).view(
            dtype
        )
        middle = guarded[32 : 32 + count]
        middle.fill_(torch.nan)
        lib.np_product(
            *(made.layout.data_ptr(), x.data_ptr(), batch, TYPES[dtype], None),
            *(middle.data_ptr(), 1),
        )
        assert middle.isfinite().all()
        around = torch.cat([guarded[:32], guarded[32 + count :]]).view(torch.uint8)
        assert (around == POISON).all()
        assert torch.equal(middle.view(batch, ROWS), made.product(x))


@every_path
def test_bias_of_any_kind(form, isa):
    made, x = case(form), activations(3, COLUMNS, dtype=torch.bfloat16)
    bias = activations(2 * ROWS, dtype=torch.bfloat16)[::2]
    assert torch.equal(made.product(x, bias), made.product(x, bias.clone()))
    assert torch.equal(made.product(x, bias), made.product(x, bias.float()))
    assert_product(made, x, made.product(x, bias), bias)


@every_path
def test_types_without_kernels_take_the_value(form, isa):
    made, x = case(form), activations(3, COLUMNS, dtype=torch.float64)
    assert torch.equal(made.product(x), F.linear(x, made.value().double()))


def test_shapes_that_do_not_fit_are_refused():
    made = case(PATHS[0])
    with pytest.raises(ValueError, match="activations of 199 columns for 150 rows"):
        made.product(activations(2, 199))
    with pytest.raises(ValueError, match="of a weight that is 150 x 200"):
        dataclasses.replace(made, rows=149).product(activations(2, COLUMNS))


@every_path
def test_the_number_of_threads_changes_nothing(form, isa):
    made, results = case(form), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append([made.product(activations(batch, COLUMNS)) for batch in (1, 5)])
        results[-1].append(made.value())
        assert torch.equal(made.stored(), made.record)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_calls_from_several_threads(isa):
    torch.set_num_threads(2)
    x = {batch: activations(batch, COLUMNS) for batch in (1, 2, 7, 33)}
    jobs = [(form, batch) for form in PATHS for batch in x] * 5
    expected = {(form, batch): case(form).product(x[batch]) for form, batch in set(jobs)}

    def run(job: tuple[str, int]) -> bool:
        form, batch = job
        return torch.equal(case(form).product(x[batch]), expected[job])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, jobs))


def test_an_unknown_instruction_set_is_refused():
    before = cpu.chosen()
    with pytest.raises(ValueError, match="no kernels for 'mmx' run here; there are .*plain"):
        cpu.choose("mmx")
    assert cpu.chosen() == before in cpu.available()


@pytest.mark.parametrize("fast", [False, True])
def test_many_rows_of_activations_are_multiplied_by_the_decoded_weight(fast, isa, monkeypatch):
    """From where that takes less time here; both ways give the same but for roundings."""
    monkeypatch.setattr(linear, "_most_rows", TIMED)
    layout = trial.layouts()[fast]
    assert layout is not None
    most = linear.most_rows(layout, torch.float32)
    assert most in linear.FROM_ROWS
    x = torch.randn(most + 1, trial.SIDE, generator=torch.Generator().manual_seed(0))
    few, many = (linear.linear(part, layout, trial.SIDE, None) for part in (x[:most], x))
    with patch.object(linear, "weight", side_effect=AssertionError("must not be decoded")):
        assert torch.equal(linear.linear(x[:most], layout, trial.SIDE, None), few)
        with pytest.raises(AssertionError, match="must not be decoded"):
            linear.linear(x, layout, trial.SIDE, None)
    assert float((many[:most] - few).norm() / few.norm()) <= 1e-3

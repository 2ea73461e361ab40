"""The CUDA kernels' own source, run with 32 lanes on a CPU, against the value in float64."""

import functools
import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from nearplane import codes
from nearplane.kernels.gpu.cuda import launches, layout, linear
from nearplane.kernels.gpu.header import read_head
from nearplane.methods import METHODS
from tests.contracts.test_methods import small
from tests.kernels import forms
from tests.kernels.accuracy import assert_product
from tests.kernels.gpu.cases import FORMS, LEFT_OUT, GpuCase, case, laid_out
from tests.problem import problem

TYPES = (torch.float32, torch.float16, torch.bfloat16)
MAIN = (
    "huffman, one step",
    "rans, columns on a ladder",
    "dense, 3 bits, groups, outliers 0.01",
    "dense, 4 bits, groups of 31",
)
every_form = pytest.mark.parametrize("form", FORMS)
every_main = pytest.mark.parametrize("form", MAIN)


def activations(batch: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, columns, generator=torch.Generator().manual_seed(batch)).to(dtype)


@every_form
def test_a_layout_has_the_value_and_gives_the_record_back(form, host):
    made = case(form)
    assert torch.equal(made.value().double(), made.weight)
    assert torch.equal(made.stored(), made.record)


@every_form
def test_products_are_those_of_the_value(form, host):
    """One type and batch for a form, so that each compiled kernel is used once."""
    made, turn = case(form), FORMS.index(form)
    dtype, batch = TYPES[turn % 3], (1, 2, 3, 5, 9)[turn % 5]
    x = activations(batch, made.columns, dtype)
    assert_product(made, x, made.product(x))


@every_main
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_products_of_every_type_and_batch(form, dtype, host):
    made = case(form)
    bias = activations(1, made.rows, dtype)[0]
    for batch in (0, 1, 7, 10, 40):  # 40: through a decoded weight
        x = activations(batch, made.columns, dtype)
        assert_product(made, x, made.product(x, bias), bias)
    assert made.product(activations(6, made.columns, dtype).view(2, 3, -1)).shape == (
        2,
        3,
        made.rows,
    )


@pytest.mark.parametrize("form", LEFT_OUT)
def test_what_the_kernels_do_not_take_is_left_as_it_is(form):
    assert layout.pack(forms.FORMS[form](), torch.device("cpu")) is None


@functools.cache
def result(name: str) -> GpuCase:
    """Return what a method makes of a small matrix."""
    p = problem(1, 48, 129, dead=3, dtype=torch.float32)
    method = small(METHODS[name])
    if "bpw" in {field.name for field in fields(method)}:
        method = replace(method, bpw=6.0)  # of small matrices, half is overhead
    return laid_out(method(p.weight, p.hessian).record)


@pytest.mark.parametrize("name", METHODS)
def test_what_methods_write(name, host):
    made = result(name)
    assert torch.equal(made.value().double(), made.weight)
    assert torch.equal(made.stored(), made.record)
    x = activations(1, made.columns, torch.bfloat16)
    assert_product(made, x, made.product(x))


@every_main
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_looked_up(form, dtype, host, monkeypatch):
    """Several times the same, in any order, two row groups at a time."""
    monkeypatch.setattr(linear, "MOST_GROUPS", 2)
    made = case(form)
    index = torch.randint(0, made.rows, (7,), generator=torch.Generator().manual_seed(0))
    index[3] = index[0]
    assert torch.equal(linear.weight_rows(made.layout, index, dtype), made.value()[index].to(dtype))
    assert linear.weight_rows(made.layout, index[:0], dtype).shape == (0, made.columns)
    with pytest.raises(RuntimeError):
        linear.weight_rows(made.layout, torch.tensor([made.rows]), dtype)


@every_main
def test_every_element_is_written_and_nothing_beside_it(form, host):
    made = case(form)
    head, x = read_head(made.layout), activations(3, made.columns, torch.float32)
    for shape in ((3, made.rows), (made.rows, made.columns)):
        room = torch.full((math.prod(shape) + 64,), math.nan)
        y = room[32:-32].view(shape)
        if shape[0] == 3:
            host.run(launches.product(made.layout, head, x, None, y), y.device)
        else:
            host.run(launches.weight(made.layout, head, y), y.device)
        assert y.isfinite().all()
        assert room[:32].isnan().all() and room[-32:].isnan().all()


@every_main
def test_a_product_is_the_same_whatever_runs_first(form, monkeypatch):
    """Sums have one order: the same bits from threads in either order, and twice."""
    from nearplane.kernels.gpu.cuda import linear
    from tests.kernels.gpu.host import Host

    made, results = case(form), []
    x = activations(2, made.columns, torch.bfloat16)
    for backwards in (False, True, False):
        monkeypatch.setitem(linear.MACHINES, "cpu", Host(backwards))
        results.append(made.product(x))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_infinite_activations_are_those_of_the_reference(host):
    made = case("huffman, columns in float32")
    x = activations(2, made.columns, torch.float32)
    x[0, 3], x[1, 5] = math.inf, math.nan
    y, expected = made.product(x), x @ made.weight.float().T
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.isinf(), expected.isinf())


def test_another_shape_is_refused(host):
    made = case(MAIN[0])
    with pytest.raises(ValueError, match="activations of 7 columns for 150 rows"):
        made.product(torch.zeros(1, 7))
    with pytest.raises(ValueError, match="no layout for a GPU"):
        read_head(torch.zeros(1000, dtype=torch.uint8))
    with pytest.raises(ValueError, match="a layout of"):
        read_head(torch.cat([made.layout, made.layout]))


def test_a_head_is_read_once_from_a_device(monkeypatch):
    """Reading waits for the device, which a CUDA graph that is captured must not do."""
    made = case(MAIN[0]).layout.clone()
    head = read_head(made)
    monkeypatch.setattr(torch.Tensor, "cpu", None)
    assert read_head(made) is head and read_head(made.view(-1)) is head


@pytest.mark.parametrize("bpw", [2.125, 3.125])
def test_a_layout_takes_little_more_than_its_record(bpw):
    """42 bytes a tile of 8192 weights are 0.041 bits; words of at most 8 bits are 0.5 % longer."""
    p = problem(3, 512, 1024, condition=100, dtype=torch.float32)
    record = METHODS["hptq"](bpw=bpw)(p.weight, torch.eye(1024)).record
    made = layout.pack(record, torch.device("cpu"))
    assert codes.inspect(record).record_bytes == len(record)
    assert 8 * (len(made) - len(record)) / (512 * 1024) < 0.041 + 0.02 * bpw

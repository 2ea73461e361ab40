"""Products with every form on every instruction set, against the decoded value in float64."""

import functools

import pytest
import torch
from torch import Tensor

from nearplane import codes
from nearplane.codes import resident
from nearplane.export.linear import CompressedLinear
from nearplane.kernels import cpu
from nearplane.methods import METHODS
from tests.contracts.test_methods import small
from tests.golden import record_cases
from tests.kernels import forms
from tests.kernels.accuracy import assert_near, assert_product
from tests.kernels.forms import Case, case, laid_out
from tests.problem import problem

BATCHES = (0, 1, 2, 3, 5, 8, 17, 65)  # 65: through a decoded weight
TYPES = (torch.float32, torch.float16, torch.bfloat16)
every_form = pytest.mark.parametrize("form", forms.FORMS)

METHOD_RESULTS = {name: (small(method), 1.0) for name, method in METHODS.items()}
METHOD_RESULTS |= {
    "eclq, one table": (METHODS["eclq"](bpw=9.0, contexts=False), 1.0),
    "gptq, all zero": (small(METHODS["gptq"]), 0.0),
    "ssqr, no outliers": (METHODS["ssqr"](bits=3, group_size=32, outliers=0.0), 1.0),
    "ssqr, many outliers": (METHODS["ssqr"](bits=3, group_size=32, outliers=0.05), 1.0),
    "ssqr, 8 bits": (METHODS["ssqr"](bits=8, group_size=32), 1.0),
}
every_result = pytest.mark.parametrize("name", METHOD_RESULTS)


@functools.cache
def result(name: str) -> Case:
    """Return what a method makes of a small matrix, in the compact layout."""
    method, size = METHOD_RESULTS[name]
    p = problem(1, 48, 129, dead=3, dtype=torch.float32)
    with resident.wanting("compact"):
        return laid_out(method(size * p.weight, p.hessian).record)


def activations(batch: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, columns, generator=torch.Generator().manual_seed(batch)).to(dtype)


def check_products(made: Case, batches: tuple[int, ...]) -> None:
    for dtype in TYPES:
        bias = activations(1, made.rows, dtype)[0]
        for batch in batches:
            x = activations(batch, made.columns, dtype)
            assert_product(made, x, made.product(x))
            assert_product(made, x, made.product(x, bias), bias)


@every_form
def test_products_are_those_of_the_value(form, isa):
    check_products(case(form), BATCHES)


@every_result
def test_products_of_what_methods_write(name, isa):
    check_products(result(name), (1, 5, 65))


def check_laws(made: Case) -> None:
    assert torch.equal(made.value().double(), made.weight)
    assert torch.equal(made.stored(), made.record)


@every_form
def test_a_layout_has_the_value_and_gives_the_record_back(form, isa):
    check_laws(case(form))


@every_result
def test_what_methods_write_comes_back(name, isa):
    check_laws(result(name))


@pytest.mark.parametrize("golden", record_cases.CASES, ids=lambda made: made.__name__)
def test_golden_records_come_back(golden):
    """All that the format allows, such as steps of -0.0 and outliers of 0."""
    record = torch.frombuffer(bytearray(golden().pack()), dtype=torch.uint8)
    shape = codes.unpack(record).code.shape
    form, layout = resident.lay_out(record, *shape)
    assert torch.equal(resident.stored(layout, form, *shape), record)
    value = resident.value(record, resident.RECORD, *shape)
    assert torch.equal(resident.value(layout, form, *shape), value)


@every_form
def test_instruction_sets_agree(form):
    """Twice the limit of one: both err."""
    made, results = case(form), {}
    for dtype in TYPES:
        x = activations(4, made.columns, dtype)
        for name in cpu.available():
            cpu.choose(name)
            results[name] = made.product(x).double()
        for y in results.values():
            middle = (y + results["plain"]) / 2
            assert_near(y, middle, made, x)


@every_form
def test_a_row_of_a_batch_is_what_it_is_alone(form, isa):
    made = case(form)
    for dtype in TYPES:
        x = activations(9, made.columns, dtype)
        together = made.product(x).double()
        alone = torch.cat([made.product(row[None]) for row in x]).double()
        assert_near(together, (together + alone) / 2, made, x)


@every_form
def test_powers_of_two_pass_through_exactly(form, isa):
    made = case(form)
    for batch in (1, 3):
        x = activations(batch, made.columns, torch.float32)
        for power in (2.0**-20, 0.5, 2.0**30):
            assert torch.equal(made.product(x * power), made.product(x) * power)


@pytest.mark.parametrize("name", ["huffman, columns on a ladder", "dense, 4 bits, a step a row"])
@pytest.mark.parametrize("power", [2.0**-3, 2.0**5])
def test_steps_times_a_power_of_two(name, power, isa):
    made, x = case(name), activations(3, forms.COLUMNS, torch.float32)
    held = codes.unpack(made.record)
    coder = codes.by_tag(codes.inspect(made.record).code_tag)
    scaled = laid_out(codes.pack(held.code, held.step * power, held.group_size, None, coder)[0])
    assert torch.equal(scaled.product(x), made.product(x) * power)


@pytest.mark.parametrize(
    "method", [METHODS["hptq"](bpw=3.125), METHODS["ssqr"](bits=3, group_size=128, outliers=0.01)]
)
def test_a_layout_takes_little_more_than_its_record(method):
    p = problem(3, 512, 1024, condition=100, dtype=torch.float32)
    identity = torch.eye(1024, dtype=torch.float32)
    record = method(p.weight, identity).record
    layer = CompressedLinear(1024, 512, record)
    stored = 8 * layer.stored_bytes / (512 * 1024)
    with resident.wanting("compact"):
        layer.lay_out()
    assert layer.form == forms.FORM
    assert stored == pytest.approx(3.125, abs=0.3) and layer.resident_bpw <= 1.06 * stored

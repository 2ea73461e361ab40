"""Layers and whole models whose products are the CUDA kernels', on a CPU that plays a GPU."""

import copy

import pytest
import torch
from torch import Tensor

from nearplane.codes import resident
from nearplane.export.linear import CompressedLinear, resident_bpw
from nearplane.kernels.gpu import versions
from nearplane.kernels.gpu.cuda import linear, nvrtc
from tests import forked
from tests.kernels.forms import COLUMNS, ROWS, gaussian
from tests.kernels.gpu.cases import case
from tests.kernels.gpu.host import PLAYED, Host, compiler

CODED, DENSE = "rans, columns on a ladder", "dense, 3 bits, groups, outliers 0.01"
every_form = pytest.mark.parametrize("form", [CODED, DENSE])


@pytest.fixture(autouse=True)
def played(monkeypatch) -> None:
    if compiler() is None:
        pytest.skip("the kernels' source needs a C++ compiler to run on a CPU")
    monkeypatch.setitem(linear.MACHINES, "cpu", Host())
    monkeypatch.setattr(resident.lay_out, "versions", PLAYED)


def layer(form: str) -> CompressedLinear:
    """Return a layer that is laid out."""
    made = CompressedLinear(COLUMNS, ROWS, case(form).record.clone(), gaussian(ROWS))
    made.lay_out()
    assert made.form == versions.CUDA and "record" not in made._buffers
    return made


def value(form: str) -> Tensor:
    record = case(form).record
    return resident.value.reference(record, resident.RECORD, ROWS, COLUMNS)


@every_form
def test_a_layer_reads_as_before(form):
    made = layer(form)
    assert torch.equal(made.value(), value(form))
    assert torch.equal(made.record, case(form).record)
    assert sorted(made.state_dict()) == ["bias", "record"]
    again = copy.deepcopy(made)
    x = gaussian(3, COLUMNS)
    assert torch.equal(again(x), made(x)) and torch.equal(again.record, made.record)
    assert made.resident_bpw == resident_bpw(made) == 8 * len(made.laid) / (ROWS * COLUMNS)


@every_form
def test_gradients_are_those_of_the_decoded_weight(form):
    made, x = layer(form), gaussian(3, COLUMNS).requires_grad_()
    made(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(3, ROWS) @ value(form))
    assert torch.equal(made.bias.grad, torch.full((ROWS,), 3.0))


@every_form
def test_torch_takes_the_operators_as_its_own(form):
    layout, x = case(form).layout, gaussian(2, COLUMNS)
    for bias in (None, gaussian(ROWS)):
        torch.library.opcheck(torch.ops.nearplane.gpu_linear, (x, layout, ROWS, bias))
    arguments = layout, ROWS, COLUMNS, torch.bfloat16
    torch.library.opcheck(torch.ops.nearplane.gpu_weight, arguments)


def test_torch_compiles_a_layer_whole():
    """In a process of its own, without the types that tests check at run time."""
    done = forked.run("tests.kernels.gpu.compiled")
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_gpu_is_served_where_its_compiler_knows_it(monkeypatch):
    """Whatever torch says of a GPU that is not here."""
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for capability, known, served in (
        ((8, 0), [80, 90], True),
        ((7, 5), [75, 80], False),
        ((9, 9), [80, 90], False),
    ):
        versions._serves.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        monkeypatch.setattr(nvrtc, "capabilities", lambda k=known: k)
        assert versions._serves(versions.CUDA, device) is served
    versions._serves.cache_clear()

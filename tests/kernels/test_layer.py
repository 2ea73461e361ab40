"""torch does to a laid-out layer what it does to any module, and differentiates through it."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearplane import codes
from nearplane.codes import CorruptError
from nearplane.export.linear import CompressedLinear, resident_bpw
from nearplane.kernels import cpu
from nearplane.kernels.cpu.layout import FORM
from tests import forked
from tests.export.tiny import copies
from tests.kernels import forms
from tests.kernels.accuracy import assert_product
from tests.kernels.forms import COLUMNS, ROWS, case

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the kernels were not built")

PATHS = ["huffman, one step, outliers", "rans, columns on a ladder", "dense, 5 bits, a step a row"]
every_path = pytest.mark.parametrize("form", PATHS)
TYPES = (torch.float32, torch.float16, torch.bfloat16)
every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)


def layer(form: str, bias: bool = True, dtype: torch.dtype = torch.float32) -> CompressedLinear:
    """Return a layer that is laid out."""
    offset = forms.gaussian(ROWS).to(dtype) if bias else None
    made = CompressedLinear(COLUMNS, ROWS, case(form).record.clone(), offset, dtype)
    made.lay_out()
    assert made.form == FORM and "record" not in made._buffers
    return made


def activations(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def assert_same_layer(made: CompressedLinear, again: nn.Module, form: str) -> None:
    assert isinstance(again, CompressedLinear) and again.form == made.form
    assert torch.equal(again.record, case(form).record)
    x = activations(3, COLUMNS, dtype=made.like.dtype)
    assert torch.equal(again(x), made(x))


@every_path
def test_a_layer_reads_as_before(form):
    """Weight, record, state_dict: as if nothing had been laid out."""
    made, plain = layer(form), CompressedLinear(COLUMNS, ROWS, case(form).record)
    assert torch.equal(made.weight, plain.weight) and torch.equal(made.value(), plain.value())
    assert torch.equal(made.record, plain.record)
    assert sorted(made.state_dict()) == ["bias", "record"]
    assert torch.equal(made.state_dict()["record"], plain.record)
    made.lay_out()  # again
    made.restore()
    assert made.form == plain.form and torch.equal(made._buffers["record"], plain.record)


@every_path
def test_copies_are_the_same_layer(form):
    made = layer(form)
    for again in copies(made):
        assert_same_layer(made, again, form)


@every_path
def test_state_goes_round(form):
    made, stream = layer(form), io.BytesIO()
    torch.save(made.state_dict(), stream)
    stream.seek(0)
    state = torch.load(stream)
    record = torch.zeros_like(case(form).record)
    for assign in (False, True):
        empty = CompressedLinear(COLUMNS, ROWS, record.clone(), torch.zeros(ROWS))
        empty.load_state_dict(state, assign=assign)
        empty.lay_out()
        assert_same_layer(made, empty, form)


def test_a_laid_out_layer_takes_another_record():
    form = PATHS[2]
    made, other = layer(form), layer(form)
    held = codes.unpack(case(form).record)
    record, _ = codes.pack(held.code.flip(0), held.step, held.group_size, None, codes.Dense(5))
    assert len(record) == len(case(form).record)
    made.load_state_dict(other.state_dict() | {"record": record})
    assert made.form == FORM and torch.equal(made.record, record)
    x = activations(3, COLUMNS)
    assert not torch.equal(made(x), other(x))
    assert_product(forms.laid_out(record), x, made(x), made.bias.detach())


def test_a_corrupt_record_is_refused():
    made = layer(PATHS[0])
    record = made.record
    record[len(record) // 2] ^= 1
    with pytest.raises(CorruptError, match="CRC"):
        made.load_state_dict({"record": record, "bias": made.bias})


@every_path
@every_type
def test_casts_change_the_bias_and_the_result(form, dtype):
    made = layer(form)
    laid, bias = made.laid, made.bias.detach().clone()
    x = activations(3, COLUMNS, dtype=dtype)
    cast = {torch.float32: made.float, torch.float16: made.half, torch.bfloat16: made.bfloat16}
    for again in (made.to(dtype), cast[dtype]()):
        assert again.laid is laid or torch.equal(again.laid, laid)
        assert again.weight.dtype == again.bias.dtype == dtype and again.form == FORM
        assert_product(case(form), x, again(x).detach(), bias.to(dtype))


@every_path
def test_meta_and_back(form):
    made, device = layer(form), torch.device("meta")
    gone = copy.deepcopy(made).to(device)
    assert all(t.is_meta for t in gone.state_dict().values())
    assert gone(torch.empty(2, COLUMNS, device=device)).shape == (2, ROWS)
    gone.load_state_dict(made.state_dict(), assign=True)
    gone.lay_out()
    assert_same_layer(made, gone, form)


def test_resident_bits_are_those_of_the_layout():
    made = layer(PATHS[0], bias=False)
    assert made.resident_bpw == 8 * len(made.laid) / (ROWS * COLUMNS)
    assert repr(made).endswith(f"resident_bpw={made.resident_bpw:.3f})")


@pytest.mark.parametrize(("form", "dtype"), zip(PATHS, TYPES, strict=True))
def test_operators_pass_torchs_own_checks(form, dtype):
    made, x = layer(form, dtype=dtype), activations(2, 3, COLUMNS, dtype=dtype)
    for bias in (None, made.bias):
        for tracked in (False, True):
            arguments = x.clone().requires_grad_(tracked), made.laid, ROWS, bias
            torch.library.opcheck(torch.ops.nearplane.cpu_linear.default, arguments)
    shape = ROWS, COLUMNS, dtype
    torch.library.opcheck(torch.ops.nearplane.cpu_weight.default, (made.laid, *shape))


@pytest.mark.parametrize("batch", [(COLUMNS,), (3, COLUMNS), (2, 2, COLUMNS), (70, COLUMNS)])
@every_path
@every_type
def test_gradients_are_those_of_the_decoded_layer(form, dtype, batch):
    """To the last bit: both multiply the same gradient by the same decoded weight."""
    made, x = layer(form, dtype=dtype), activations(*batch, dtype=dtype).requires_grad_()
    y = made(x)
    grad = activations(*y.shape, dtype=dtype)
    got = torch.autograd.grad(y, (x, made.bias), grad)
    weight, bias = made.value().to(dtype), made.bias.detach().requires_grad_()
    rows, grads = x.detach().reshape(-1, COLUMNS).requires_grad_(), grad.reshape(-1, ROWS)
    expected = torch.autograd.grad(F.linear(rows, weight, bias), (rows, bias), grads)
    assert torch.equal(got[0].reshape(-1, COLUMNS), expected[0])
    assert torch.equal(got[1], expected[1])


def test_gradients_reach_what_is_before_and_the_bias_alone():
    made, x = layer(PATHS[0]), activations(3, COLUMNS)
    made(x).sum().backward()
    assert x.grad is None and torch.equal(made.bias.grad, torch.full((ROWS,), 3.0))
    first = nn.Linear(COLUMNS, COLUMNS)
    layer(PATHS[0], bias=False)(first(x)).sum().backward()
    assert first.weight.grad.abs().sum() > 0


def test_a_compiled_layer_gives_the_same():
    """In a process of its own: beartype, which watches the tests, cannot be compiled."""
    done = forked.run("tests.kernels.compiled")
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_resident_size_of_a_model_is_that_of_its_layers():
    layers = [layer(form) for form in PATHS]
    model = nn.Sequential(*layers, nn.Linear(3, 3))
    laid = sum(made.laid.numel() for made in layers)
    assert resident_bpw(model) == 8 * laid / (len(layers) * ROWS * COLUMNS)
    with pytest.raises(ValueError, match="no layer of this Linear is compressed"):
        resident_bpw(nn.Linear(3, 3))

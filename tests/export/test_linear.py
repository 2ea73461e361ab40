"""A compressed layer is a linear layer that survives what torch does to modules."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from nearplane.codes import CorruptError, resident
from nearplane.export.linear import CompressedLinear, empty_like
from tests.export import tiny


def layer(seed: int, bias: bool = True, transposed: bool = False) -> CompressedLinear:
    torch.manual_seed(seed)
    record = tiny.pack_layer("a", torch.randn(13, 33), seed).record
    return CompressedLinear(33, 13, record, torch.randn(13) if bias else None, None, transposed)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shape", [(33,), (1, 33), (2, 5, 33), (0, 33)])
def test_forward_is_a_product_with_the_decoded_value(seed, shape):
    made, x = layer(seed), torch.randn(shape)
    assert torch.equal(made(x), F.linear(x, made.value(), made.bias))


def test_forward_in_half_precision_rounds_the_value():
    made, x = layer(1).half(), torch.randn(4, 33).half()
    assert made.record.dtype == torch.uint8 and made.bias.dtype == torch.float16
    assert torch.equal(made(x), F.linear(x, made.value().half(), made.bias))


def test_weight_reads_as_the_replaced_layer_had_it():
    made = layer(0, transposed=True).to(torch.bfloat16)
    assert made.weight.shape == (33, 13) and made.weight.dtype == torch.bfloat16
    assert torch.equal(made.weight.T, made.value().bfloat16())
    assert list(made.state_dict()) == ["bias", "record"]


def test_gradient_reaches_the_input():
    made, x = layer(0), torch.randn(4, 33, requires_grad=True)
    made(x).sum().backward()
    assert torch.allclose(x.grad, made.value().sum(0).expand(4, 33))


def test_deepcopy_pickle_and_torch_save():
    made, x = layer(1), torch.randn(4, 33)
    for again in tiny.copies(made):
        assert torch.equal(again(x), made(x))


@pytest.mark.parametrize("made", [nn.Linear(33, 13), nn.Linear(33, 13, bias=False), Conv1D(13, 33)])
def test_built_on_the_meta_device_and_filled(made):
    full = layer(2, bias=made.bias is not None)
    empty = empty_like(made.to("meta"), 13, 33, len(full.record))
    assert all(t.is_meta for t in empty.state_dict().values())
    assert empty(torch.empty(4, 33, device="meta")).shape == (4, 13)
    empty.load_state_dict(full.state_dict(), assign=True)
    x = torch.randn(4, 33)
    assert torch.equal(empty(x), full(x))
    assert empty.transposed == isinstance(made, Conv1D)


def test_shapes_that_do_not_fit_are_refused():
    made = layer(0)
    with pytest.raises(CorruptError, match="a record of 13 x 33"):
        resident.product(torch.randn(4, 32), made.record, resident.RECORD, 13)


def test_repr_says_what_it_stores():
    made = layer(0, bias=False)
    bpw = 8 * len(made.record) / (13 * 33)
    expected = f"CompressedLinear(in_features=33, out_features=13, bias=False, bpw={bpw:.3f})"
    assert repr(made) == expected

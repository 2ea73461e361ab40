"""A program: torch.compile takes laid-out layers whole, and they give the same results."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from nearplane.export.embedding import CompressedEmbedding
from nearplane.export.linear import CompressedLinear
from tests.kernels.forms import COLUMNS, ROWS, case, gaussian


def layer(form: str, dtype: torch.dtype) -> CompressedLinear:
    made = CompressedLinear(COLUMNS, ROWS, case(form).record, gaussian(ROWS).to(dtype), dtype)
    made.lay_out()
    return made


def check_graph(form: str, dtype: torch.dtype) -> None:
    """The result, and the gradients of the input and of the bias, to the last bit."""
    torch.compiler.reset()
    made, x = layer(form, dtype), gaussian(3, COLUMNS).to(dtype)
    again = copy.deepcopy(made)
    compiled = torch.compile(again, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), made(x))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    made(inputs[0]).sum().backward()
    compiled(inputs[1]).sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    assert torch.equal(made.bias.grad, again.bias.grad)


def check_look_up(form: str) -> None:
    torch.compiler.reset()
    made = CompressedEmbedding(nn.Embedding(ROWS, COLUMNS), case(form).record)
    made.lay_out()
    index = torch.tensor([[0, ROWS - 1], [7, 7]])
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(index), made.weight[index])


def check_inductor() -> None:
    """Its own silu may round otherwise, so activations may differ in their last two bits."""
    made, x = layer("huffman, one step, outliers", torch.float32), gaussian(3, COLUMNS)
    network = nn.Sequential(nn.SiLU(), made, nn.ReLU())
    compiled = torch.compile(network, fullgraph=True)
    with torch.no_grad():
        y, expected = compiled(x), network(x)
    assert ((y - expected).abs() <= 2.0**-21 * F.silu(x).abs() @ made.value().abs().T).all()


if __name__ == "__main__":
    check_graph("huffman, one step, outliers", torch.float32)
    check_graph("rans, columns on a ladder", torch.bfloat16)
    check_graph("dense, 5 bits, a step a row", torch.float16)
    check_look_up("rans, columns and rows")
    check_inductor()

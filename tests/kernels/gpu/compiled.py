"""A program: torch.compile takes layers of the CUDA kernels whole, with the same results."""

import torch

from nearplane.codes import resident
from nearplane.export.linear import CompressedLinear
from nearplane.kernels.gpu.cuda import linear
from tests.kernels.forms import COLUMNS, FORMS, ROWS, gaussian
from tests.kernels.gpu.host import PLAYED, Host


def check_graph(form: str, dtype: torch.dtype) -> None:
    """The result, and the gradient of the input, to the last bit."""
    torch.compiler.reset()
    made = CompressedLinear(COLUMNS, ROWS, FORMS[form](), gaussian(ROWS).to(dtype), dtype)
    made.lay_out()
    x = gaussian(3, COLUMNS).to(dtype)
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x), made(x))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    made(inputs[0]).sum().backward()
    compiled(inputs[1]).sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)


if __name__ == "__main__":
    linear.MACHINES["cpu"] = Host()
    resident.lay_out.versions = PLAYED
    check_graph("rans, columns on a ladder", torch.bfloat16)
    check_graph("dense, 3 bits, groups, outliers 0.01", torch.float32)

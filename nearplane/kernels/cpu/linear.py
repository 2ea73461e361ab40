"""The product with a layout: a torch operator, and the short way to it where none is needed."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from nearplane.kernels.cpu.layout import ensure_checked, weight
from nearplane.kernels.cpu.library import TYPES, library

# more rows of activations than this are multiplied by a decoded weight: the platform's own product
# then costs more than decoding
MOST_ROWS = 128

LIBRARY = torch.library.Library("nearplane", "FRAGMENT")
LIBRARY.define("cpu_linear(Tensor x, Tensor layout, int rows, Tensor? bias) -> Tensor")
LIBRARY.define("cpu_weight(Tensor layout, int rows, int columns, ScalarType dtype) -> Tensor")


def linear(
    x: Float[Tensor, "*batch columns"],
    layout: UInt8[Tensor, " layout"],
    rows: int,
    bias: Float[Tensor, " rows"] | None = None,
) -> Float[Tensor, "*batch rows"]:
    """Return x · weightᵀ + bias, accumulated in float32, in the type of x."""
    tracked = torch.is_grad_enabled() and (
        x.requires_grad or (bias is not None and bias.requires_grad)
    )
    if tracked or torch.compiler.is_compiling():
        return torch.ops.nearplane.cpu_linear(x, layout, rows, bias)
    return _linear(x, layout, rows, bias)


def _linear(x: Tensor, layout: Tensor, rows: int, bias: Tensor | None) -> Tensor:
    """The product itself. ValueError if the layout is of another shape."""
    shape, columns = ensure_checked(layout), x.shape[-1]
    if shape != (rows, columns):
        raise ValueError(
            f"activations of {columns} columns for {rows} rows of a weight that is "
            f"{shape[0]} x {shape[1]}"
        )
    if bias is not None and (bias.dtype != x.dtype or not bias.is_contiguous()):
        bias = bias.to(x.dtype).contiguous()
    batch = x.numel() // columns
    if batch > MOST_ROWS:
        return F.linear(x, weight(layout, x.dtype), bias)
    x = x.contiguous()
    y = x.new_empty((*x.shape[:-1], rows))
    library().np_product(
        layout.data_ptr(),
        x.data_ptr(),
        batch,
        TYPES[x.dtype],
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


def _weight(layout: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    shape = ensure_checked(layout)
    if shape != (rows, columns):
        raise ValueError(f"a weight of {shape[0]} x {shape[1]}, not {rows} x {columns}")
    return weight(layout, dtype)


def _fake_linear(x: Tensor, layout: Tensor, rows: int, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


def _fake_weight(layout: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return layout.new_empty((rows, columns), dtype=dtype)


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    x, layout, rows, bias = inputs
    ctx.save_for_backward(layout)
    ctx.shape = rows, x.shape[-1]
    ctx.has_bias = bias is not None


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
    (layout,) = ctx.saved_tensors
    dense = torch.ops.nearplane.cpu_weight(layout, *ctx.shape, grad.dtype)
    to_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.has_bias else None
    return grad @ dense, None, None, to_bias


LIBRARY.impl("cpu_linear", _linear, "CPU")
LIBRARY.impl("cpu_weight", _weight, "CPU")
torch.library.register_fake("nearplane::cpu_linear", _fake_linear, lib=LIBRARY)
torch.library.register_fake("nearplane::cpu_weight", _fake_weight, lib=LIBRARY)
torch.library.register_autograd(
    "nearplane::cpu_linear", _backward, setup_context=_keep, lib=LIBRARY
)

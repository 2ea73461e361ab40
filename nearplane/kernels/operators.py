"""Registers products with a layout as torch operators, for torch.compile and autograd."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Linear = Callable[[Tensor, Tensor, int, Tensor | None], Tensor]
Weight = Callable[[Tensor, torch.dtype], Tensor]

LIBRARY = torch.library.Library("nearplane", "FRAGMENT")


def operator(name: str, device: str, linear: Linear, weight: Weight) -> Linear:
    """Register the operators nearplane::NAME_linear and NAME_weight; return the product.

    The returned function calls `linear` directly, and goes through the operator only if autograd
    or torch.compile needs it.

    - `device`: torch's dispatch key.
    - `linear`: returns x · weightᵀ + bias for (x, layout, rows, bias).
    - `weight`: returns the decoded weight for (layout, dtype).
    """
    LIBRARY.define(f"{name}_linear(Tensor x, Tensor layout, int rows, Tensor? bias) -> Tensor")
    LIBRARY.define(
        f"{name}_weight(Tensor layout, int rows, int columns, ScalarType dtype) -> Tensor"
    )

    def shaped_weight(layout: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        dense = weight(layout, dtype)
        if dense.shape != (rows, columns):
            raise ValueError(f"a weight of {list(dense.shape)}, not {rows} x {columns}")
        return dense

    LIBRARY.impl(f"{name}_linear", linear, device)
    LIBRARY.impl(f"{name}_weight", shaped_weight, device)
    ours = [f"nearplane::{name}_{kind}" for kind in ("linear", "weight")]
    torch.library.register_fake(ours[0], _fake_linear, lib=LIBRARY)
    torch.library.register_fake(ours[1], _fake_weight, lib=LIBRARY)
    decoded = getattr(torch.ops.nearplane, f"{name}_weight")
    torch.library.register_autograd(ours[0], _backward(decoded), setup_context=_keep, lib=LIBRARY)
    called = getattr(torch.ops.nearplane, f"{name}_linear")

    def product(
        x: Float[Tensor, "*batch columns"],
        layout: UInt8[Tensor, " layout"],
        rows: int,
        bias: Float[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "*batch rows"]:
        # a direct call avoids the cost of torch's dispatcher
        direct = not (_tracked(x, bias) or torch.compiler.is_compiling())
        return (linear if direct else called)(x, layout, rows, bias)

    return product


def check_shape(shape: tuple[int, int], rows: int, columns: int) -> None:
    """Raise ValueError unless the weight in a layout has the shape that a product needs."""
    if shape != (rows, columns):
        raise ValueError(
            f"activations of {columns} columns for {rows} rows of a weight that is "
            f"{shape[0]} x {shape[1]}"
        )


def _tracked(x: Tensor, bias: Tensor | None) -> bool:
    followed = x.requires_grad or (bias is not None and bias.requires_grad)
    return torch.is_grad_enabled() and followed


def _fake_linear(x: Tensor, layout: Tensor, rows: int, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


def _fake_weight(layout: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return layout.new_empty((rows, columns), dtype=dtype)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, layout, rows, bias = inputs
    ctx.save_for_backward(layout)
    ctx.shape = rows, x.shape[-1]
    ctx.has_bias = bias is not None


def _backward(decoded: Callable[..., Tensor]) -> Callable:
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        (layout,) = ctx.saved_tensors
        dense = decoded(layout, *ctx.shape, grad.dtype)
        to_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.has_bias else None
        return grad @ dense, None, None, to_bias

    return backward

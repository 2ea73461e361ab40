"""The product x · weightᵀ + bias with a compressed weight on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nearplane.kernels.cpu.layout import ensure_checked, weight
from nearplane.kernels.cpu.library import TYPES, kernels
from nearplane.kernels.operators import check_shape, operator

# for more rows of activations than this, the weight is decoded and torch multiplies: decoding then
# costs less than the product itself
MOST_ROWS = 128


def _linear(x: Tensor, layout: Tensor, rows: int, bias: Tensor | None) -> Tensor:
    """Return x · weightᵀ + bias, accumulated in float32, in the type of x.

    ValueError if the weight in the layout has another shape.
    """
    columns = x.shape[-1]
    check_shape(ensure_checked(layout), rows, columns)
    if bias is not None and (bias.dtype != x.dtype or not bias.is_contiguous()):
        bias = bias.to(x.dtype).contiguous()
    batch = x.numel() // columns
    if batch > MOST_ROWS:
        return F.linear(x, weight(layout, x.dtype), bias)
    x = x.contiguous()
    y = x.new_empty((*x.shape[:-1], rows))
    kernels().np_product(
        layout.data_ptr(),
        x.data_ptr(),
        batch,
        TYPES[x.dtype],
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


linear = operator("cpu", "CPU", _linear, weight)

"""The product x · weightᵀ + bias with a compressed weight on a CPU."""

import functools
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from nearplane.kernels.cpu.layout import ensure_checked, read_header, weight
from nearplane.kernels.cpu.library import TYPES, chosen, kernels
from nearplane.kernels.cpu.trial import SIDE, layouts, seconds
from nearplane.kernels.operators import check_shape, operator

# rows of activations, from which on the weight is decoded and torch multiplies: one of these, as
# this processor's times say. Fewer rows than the first are always multiplied by the layout
FROM_ROWS = (8, 16, 24, 32, 48, 64, 96, 128)
TRIALS = 3


def most_rows(layout: Tensor, dtype: torch.dtype) -> int:
    """Return how many rows of activations take less time without decoding the weight first."""
    head = read_header(layout)
    fast = not (head.planes or head.segments)
    return _most_rows(chosen(), torch.get_num_threads(), fast, dtype)


@functools.cache
def _most_rows(instruction_set: str, threads: int, fast: bool, dtype: torch.dtype) -> int:
    """Time products with the fewest and the most rows both ways; between them, all are straight."""
    layout = layouts()[fast]
    if layout is None:
        return FROM_ROWS[-1]
    few, many = FROM_ROWS[0], FROM_ROWS[-1]
    dense, x = weight(layout, dtype), torch.randn(many, SIDE).to(dtype)
    calls = [partial(_product, x[:rows], layout, SIDE, None) for rows in (few, many)]
    calls += [partial(F.linear, x[:rows], dense) for rows in (few, many)]
    *both, decoding = seconds([*calls, partial(weight, layout, dtype)], TRIALS)
    ahead = decoding + both[2] - both[0]
    slope = (both[1] - both[0] - both[3] + both[2]) / (many - few)
    equal = few + ahead / slope if slope > 0 else many
    return max([rows for rows in FROM_ROWS if rows <= equal], default=few)


def _linear(x: Tensor, layout: Tensor, rows: int, bias: Tensor | None) -> Tensor:
    """Return x · weightᵀ + bias, accumulated in float32, in the type of x.

    ValueError if the weight in the layout has another shape.
    """
    columns = x.shape[-1]
    check_shape(ensure_checked(layout), rows, columns)
    if bias is not None and (bias.dtype != x.dtype or not bias.is_contiguous()):
        bias = bias.to(x.dtype).contiguous()
    batch = x.numel() // columns
    if batch > FROM_ROWS[0] and batch > most_rows(layout, x.dtype):
        return F.linear(x, weight(layout, x.dtype), bias)
    return _product(x.contiguous(), layout, rows, bias)


def _product(x: Tensor, layout: Tensor, rows: int, bias: Tensor | None) -> Tensor:
    """Return the product as the layout lies; x and bias are contiguous, and of one type."""
    y = x.new_empty((*x.shape[:-1], rows))
    kernels().np_product(
        layout.data_ptr(),
        x.data_ptr(),
        x.numel() // x.shape[-1],
        TYPES[x.dtype],
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


linear = operator("cpu", "CPU", _linear, weight)

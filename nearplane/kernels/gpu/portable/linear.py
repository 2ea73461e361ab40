"""The product x · weightᵀ + bias with a layout, by Triton kernels."""

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from nearplane.kernels.gpu.header import Head, read_head
from nearplane.kernels.gpu.portable import plan
from nearplane.kernels.gpu.portable.layout import unpack as unpack
from nearplane.kernels.gpu.portable.start import start
from nearplane.kernels.operators import check_shape, operator


def weight(layout: UInt8[Tensor, " layout"], dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
    """Return the weight step · code + outliers, computed in float32 and rounded to `dtype`."""
    head = read_head(layout)
    out = torch.empty(head.rows, head.columns, dtype=dtype, device=layout.device)
    start(plan.decode(head), layout=layout, out=out)
    if head.has_outliers:
        start(plan.decode_outliers(head), layout=layout, out=out)
    return out


@functools.cache
def processors(device: torch.device) -> int:
    """Return the number of multiprocessors of a GPU; 1 for Triton's interpreter on a CPU."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _linear(x: Tensor, layout: Tensor, rows: int, bias: Tensor | None) -> Tensor:
    """Return x · weightᵀ + bias, accumulated in float32, in the type of x.

    ValueError if the weight in the layout has another shape.
    """
    head, columns = read_head(layout), x.shape[-1]
    check_shape((head.rows, head.columns), rows, columns)
    batch = x.numel() // columns
    if batch > plan.MOST_ROWS:
        return F.linear(x, weight(layout, x.dtype), None if bias is None else bias.to(x.dtype))
    y = x.new_empty((*x.shape[:-1], rows))
    if batch:
        _product(x.contiguous(), head, layout, bias, y, batch)
    return y


def _product(
    x: Tensor, head: Head, layout: Tensor, bias: Tensor | None, y: Tensor, batch: int
) -> None:
    """Write the product to `y`: one kernel, or two if the columns are split over programs."""
    planned = plan.few if batch <= plan.MOST_FEW else plan.many
    launch = planned(head, x.dtype, batch, bias is not None, processors(x.device))
    added = y if bias is None else bias.contiguous()
    if launch.splits == 1:
        return start(launch, x=x, layout=layout, bias=added, y=y)
    shares = x.new_empty((launch.splits, batch, head.rows), dtype=torch.float32)
    start(launch, x=x, layout=layout, bias=added, y=shares)
    last = plan.combine(head, batch, launch.splits, bias is not None)
    start(last, partial=shares, bias=added, y=y)


# registered for CPUs too, where Triton's interpreter runs these kernels in tests
linear = operator("triton", "CompositeExplicitAutograd", _linear, weight)

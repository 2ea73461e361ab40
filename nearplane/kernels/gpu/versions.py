"""Registers the GPU kernels as versions of functions in nearplane/codes/resident.py."""

import functools
import importlib.util

import torch
from torch import Tensor

from nearplane.codes import resident

CUDA, TRITON = "cuda", "triton"  # names of the two layouts, in order of preference
LEAST_CAPABILITY = 80  # Ampere: bf16 tensor cores, asynchronous copies to shared memory


def _on_gpu(record: Tensor, rows: int, columns: int) -> bool:
    return record.device.type == "cuda"


def _is_ours(bytes_: Tensor, form: str, *shape: int) -> bool:
    return form in (CUDA, TRITON)


def _multiplies(
    x: Tensor, bytes_: Tensor, form: str, rows: int, bias: Tensor | None = None
) -> bool:
    return form in (CUDA, TRITON) and x.dtype in (torch.float32, torch.float16, torch.bfloat16)


@resident.lay_out.version("gpu", _on_gpu)
def _lay_out(record: Tensor, rows: int, columns: int) -> tuple[str, Tensor]:
    for form in (CUDA, TRITON):
        if _serves(form, record.device):
            layout = _layout(form).pack(record, record.device)
            if layout is not None:
                return form, layout
    return resident.RECORD, record


@resident.stored.version("gpu", _is_ours)
def _stored(bytes_: Tensor, form: str, rows: int, columns: int) -> Tensor:
    return _products(form).unpack(bytes_)


@resident.value.version("gpu", _is_ours)
def _value(bytes_: Tensor, form: str, rows: int, columns: int) -> Tensor:
    return _products(form).weight(bytes_, torch.float32)


def _looks_up(
    index: Tensor, bytes_: Tensor, form: str, shape: tuple[int, int], dtype: torch.dtype
) -> bool:
    return form == CUDA and dtype in (torch.float32, torch.float16, torch.bfloat16)


@resident.value_rows.version("gpu", _looks_up)
def _value_rows(
    index: Tensor, bytes_: Tensor, form: str, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    from nearplane.kernels.gpu.cuda import linear

    rows = linear.weight_rows(bytes_, index.flatten(), dtype)
    return rows.view(*index.shape, shape[1])


@resident.product.version("gpu", _multiplies)
def _product(x: Tensor, bytes_: Tensor, form: str, rows: int, bias: Tensor | None = None) -> Tensor:
    return _products(form).linear(x, bytes_, rows, bias)


def _layout(form: str):
    """Return the module that makes layouts of a form; imported at the first use of a GPU."""
    if form == CUDA:
        from nearplane.kernels.gpu.cuda import layout
    else:
        from nearplane.kernels.gpu.portable import layout
    return layout


def _products(form: str):
    """Return the module that multiplies by layouts of a form."""
    if form == CUDA:
        from nearplane.kernels.gpu.cuda import linear
    else:
        from nearplane.kernels.gpu.portable import linear
    return linear


@functools.cache
def _serves(form: str, device: torch.device) -> bool:
    """Return whether a device can run the kernels of a form."""
    if form == TRITON:
        return importlib.util.find_spec("triton") is not None
    from nearplane.kernels.gpu.cuda import nvrtc

    if torch.version.cuda is None:
        return False
    major, minor = torch.cuda.get_device_capability(device)
    capability = 10 * major + minor
    return capability >= LEAST_CAPABILITY and capability in nvrtc.capabilities()

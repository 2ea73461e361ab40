"""Registers the CPU kernels as versions of functions in nearplane/codes."""

import numpy as np
import torch
from torch import Tensor

from nearplane.codes import bands, resident
from nearplane.kernels.cpu import choice
from nearplane.kernels.cpu.layout import FORM, unpack, weight, weight_rows
from nearplane.kernels.cpu.library import TYPES
from nearplane.kernels.cpu.linear import linear
from nearplane.kernels.cpu.streams import decode


def _on_cpu(record: Tensor, rows: int, columns: int) -> bool:
    return record.device.type == "cpu"


def _is_ours(bytes_: Tensor, form: str, *shape: int) -> bool:
    return form == FORM


def _multiplies(
    x: Tensor, bytes_: Tensor, form: str, rows: int, bias: Tensor | None = None
) -> bool:
    return form == FORM and x.dtype in TYPES and x.device.type == "cpu"


def _looks_up(
    index: Tensor, bytes_: Tensor, form: str, shape: tuple[int, int], dtype: torch.dtype
) -> bool:
    return form == FORM and dtype in TYPES and index.device.type == "cpu"


@resident.lay_out.version("cpu", _on_cpu)
def _lay_out(record: Tensor, rows: int, columns: int) -> tuple[str, Tensor]:
    layout = choice.lay_out(record, rows, columns)
    return (resident.RECORD, record) if layout is None else (FORM, layout)


@resident.stored.version("cpu", _is_ours)
def _stored(bytes_: Tensor, form: str, rows: int, columns: int) -> Tensor:
    return unpack(bytes_)


@resident.value.version("cpu", _is_ours)
def _value(bytes_: Tensor, form: str, rows: int, columns: int) -> Tensor:
    return weight(bytes_, torch.float32)


@resident.value_rows.version("cpu", _looks_up)
def _value_rows(
    index: Tensor, bytes_: Tensor, form: str, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    return weight_rows(bytes_, index.flatten(), dtype).view(*index.shape, shape[1])


@resident.product.version("cpu", _multiplies)
def _product(x: Tensor, bytes_: Tensor, form: str, rows: int, bias: Tensor | None = None) -> Tensor:
    return linear(x, bytes_, rows, bias)


@bands.decode_bands.version("cpu", lambda streams, shape, frequencies: True)
def _decode_bands(
    streams: list[bands.Words], shape: tuple[int, int], frequencies: bands.Frequencies
) -> np.ndarray:
    return decode(streams, shape, frequencies)

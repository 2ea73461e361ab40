"""Several small matrices of different codes, laid out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nearplane.codes import resident
from tests.export.tiny import pack_layer


@dataclass
class Parts:
    """What `fused_linear` takes, and the matrix that it stands for."""

    laid: list[Tensor]
    forms: list[str]
    rows: list[int]
    value: Tensor


def parts(rows: list[int], columns: int) -> Parts:
    generator = torch.manual_seed(0)
    packed = [
        pack_layer(str(seed), torch.randn(count, columns, generator=generator), seed)
        for seed, count in enumerate(rows)
    ]
    laid = [resident.lay_out(p.record, n, columns) for p, n in zip(packed, rows, strict=True)]
    value = torch.cat([p.value for p in packed])
    return Parts([bytes_ for _, bytes_ in laid], [form for form, _ in laid], rows, value)

"""Records laid out for the CUDA kernels, on this machine's CPU."""

import functools
import math
from unittest.mock import patch

import torch
from torch import Tensor

from nearplane import codes
from nearplane.kernels.gpu import header
from nearplane.kernels.gpu.cuda import launches, layout, linear
from nearplane.kernels.gpu.cuda.sections import Shape, shape_of
from tests.kernels import forms
from tests.kernels.forms import Case

# entropy-coded integers beside outliers, or too large for a table: layers that are decoded instead
LEFT_OUT = ("huffman, one step, outliers", "huffman, low bits in two planes")
FORMS = [form for form in forms.FORMS if form not in LEFT_OUT]


class GpuCase(Case):
    """A case whose layout is for a GPU."""

    @property
    def head(self) -> header.Head:
        return header.read_head(self.layout)

    @property
    def shape(self) -> Shape:
        return shape_of(self.head)

    @property
    def parted(self) -> bool:
        return False

    @property
    def additions(self) -> int:
        # an activation is up to three bf16 terms; sparse entries; steps, scale, bias, the result
        return self.columns * 4 + 8

    def most_rows(self, dtype: torch.dtype) -> int:
        return launches.most_rows(self.head, dtype)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear.linear(x, self.layout, self.rows, bias)

    def value(self) -> Tensor:
        return linear.weight(self.layout, torch.float32)

    def stored(self) -> Tensor:
        return linear.unpack(self.layout)


def laid_out(record: Tensor) -> GpuCase:
    """Return a record's case; the kernels must serve it, however large it grows."""
    with patch.object(layout, "MOST_GROWTH", math.inf):
        made = layout.pack(record, torch.device("cpu"))
    assert made is not None
    rows, columns = codes.unpack(record).code.shape
    return GpuCase(record, made, rows, columns, *forms.meaning(record))


@functools.cache
def case(form: str) -> GpuCase:
    """Return the case of one of FORMS, made once."""
    return laid_out(forms.FORMS[form]())

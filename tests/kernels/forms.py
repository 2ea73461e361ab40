"""Records of every form that methods write, laid out, with the weight that they stand for."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from nearplane import codes, types
from nearplane.codes import resident
from nearplane.codes.ladder import ROW_WIDTH
from nearplane.kernels import cpu
from nearplane.kernels.cpu.layout import FORM, Head, read_header
from nearplane.kernels.cpu.linear import most_rows
from tests.codes.draw import outliers, spread

ROWS, COLUMNS = 150, 200  # two blocks of rows, the last group of 16 short; no multiple of anything


@dataclass(frozen=True)
class Case:
    """A record, its layout, and what they mean in float64."""

    record: Tensor
    layout: Tensor
    rows: int
    columns: int
    weight: Tensor  # value, (rows, columns)
    size: Tensor  # |step · code| + |outlier|
    step: Tensor  # of each weight, broadcasts to (rows, columns)
    apart: int  # the largest integer less the smallest

    @property
    def head(self) -> Head:
        return read_header(self.layout)

    @property
    def parted(self) -> bool:
        """Whether an integer is the sum of several."""
        return self.head.planes + (self.head.segments > 0) > 1

    @property
    def additions(self) -> int:
        """How many roundings an element of a product may pass through."""
        passes = self.head.planes + (self.head.segments > 0)
        # two bf16 terms may be one activation; outliers and escapes; step, scale, bias, the result
        return self.columns * (2 * passes + 2) + 8

    def most_rows(self, dtype: torch.dtype) -> int:
        """How many rows of activations are multiplied without decoding first."""
        return most_rows(self.layout, dtype)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return resident.product(x, self.layout, FORM, self.rows, bias)

    def value(self) -> Tensor:
        return resident.value(self.layout, FORM, self.rows, self.columns)

    def value_rows(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        shape = self.rows, self.columns
        return resident.value_rows(index, self.layout, FORM, shape, dtype)

    def stored(self) -> Tensor:
        return resident.stored(self.layout, FORM, self.rows, self.columns)


def laid_out(record: Tensor) -> Case:
    """Return a record's case; the kernels must serve it, however large it grows."""
    rows, columns = codes.unpack(record).code.shape
    with patch.object(cpu.layout, "MOST_GROWTH", math.inf):
        form, layout = resident.lay_out(record, rows, columns)
    assert form == FORM
    return Case(record, layout, rows, columns, *meaning(record))


def meaning(record: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return weight, size, step and apart of a case."""
    held = codes.unpack(record)
    weight = resident.value(record, resident.RECORD, *held.code.shape).double()
    step = types.spread(held.step, held.group_size, held.code.shape[1]).double()
    step = step if held.row_step is None else held.row_step.double() * step
    coded = held.code * step
    size = coded.abs() + (weight - coded).abs()
    return weight, size, step, int(held.code.max()) - int(held.code.min())


def packed(
    code, step: Tensor, group_size: int | None = None, sparse=None, coder=None, row_step=None
) -> Tensor:
    """Return the record of a matrix of integers."""
    code = torch.as_tensor(np.ascontiguousarray(code), dtype=torch.int32)
    size = code.shape[1] if group_size is None else group_size
    return codes.pack(code, step, size, sparse, coder or codes.Huffman(), row_step)[0]


def one_step(sigma: float, coder: codes.Code, rate: float | None = None) -> Callable[[], Tensor]:
    return lambda: packed(
        spread(1, ROWS, COLUMNS, sigma, 0.0), torch.tensor([[0.0123]]), None, sparse(rate), coder
    )


def columns_on_a_ladder(sigma: float, coder: codes.Code, rows: bool = False) -> Tensor:
    step = codes.ladder_steps(torch.exp2(gaussian(COLUMNS))) * codes.round_base(0.0123)
    row_step = codes.ladder_steps(torch.exp2(gaussian(ROWS)), ROW_WIDTH)[:, None] if rows else None
    return packed(spread(2, ROWS, COLUMNS, sigma, 0.7), step[None], None, None, coder, row_step)


def columns_in_16_bits(dtype: torch.dtype) -> Tensor:
    step = torch.exp2(2 * gaussian(1, COLUMNS)).to(dtype).float()
    return packed(spread(3, ROWS, COLUMNS, 1.5, 0.5), step)


def grouped(bits: int, size: int, rate: float | None, dtype: torch.dtype) -> Tensor:
    random = np.random.default_rng(bits)
    code = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (ROWS, COLUMNS))
    step = gaussian(ROWS, -(-COLUMNS // size)).to(dtype).float()
    return packed(code, step, size, sparse(rate), codes.Dense(bits))


def sparse(rate: float | None) -> types.Outliers | None:
    return None if rate is None else outliers(4, ROWS, COLUMNS, rate)


def gaussian(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


FORMS: dict[str, Callable[[], Tensor]] = {
    "huffman, one step": one_step(2.0, codes.Huffman()),
    "huffman, one step, outliers": one_step(2.0, codes.Huffman(), 0.01),
    "huffman, all zero but a few": one_step(0.25, codes.Huffman()),
    "rans, many escapes": one_step(9.0, codes.Rans()),
    "rans, low bits in a plane": one_step(100.0, codes.Rans()),
    "huffman, low bits in two planes": one_step(3000.0, codes.Huffman()),
    "huffman, columns on a ladder": lambda: columns_on_a_ladder(2.0, codes.Huffman()),
    "rans, columns on a ladder": lambda: columns_on_a_ladder(3.0, codes.Rans()),
    "huffman, columns and rows": lambda: columns_on_a_ladder(2.0, codes.Huffman(), rows=True),
    "rans, columns and rows": lambda: columns_on_a_ladder(2.0, codes.Rans(), rows=True),
    "dense, columns and rows": lambda: columns_on_a_ladder(0.5, codes.Dense(), rows=True),
    "huffman, columns in float16": lambda: columns_in_16_bits(torch.float16),
    "huffman, columns in bfloat16": lambda: columns_in_16_bits(torch.bfloat16),
    "huffman, columns in float32": lambda: columns_in_16_bits(torch.float32),
    "dense, one step": one_step(2.0, codes.Dense()),
    "dense, 3 bits, steps in float32": lambda: grouped(3, 64, 0.01, torch.float32),
    "dense, 4 bits, steps in bfloat16": lambda: grouped(4, 64, 0.01, torch.bfloat16),
    "dense, 4 bits, groups of 31": lambda: grouped(4, 31, None, torch.float16),
    "dense, 3 bits, groups of 33": lambda: grouped(3, 33, 0.2, torch.float16),
}
for _bits in range(1, 9):
    FORMS[f"dense, {_bits} bits, a step a row"] = functools.partial(
        grouped, _bits, COLUMNS, None, torch.float16
    )
    for _rate in (None, 0.0, 0.01, 0.05) if _bits in (3, 8) else (0.01,):
        FORMS[f"dense, {_bits} bits, groups, outliers {_rate}"] = functools.partial(
            grouped, _bits, 64, _rate, torch.float16
        )


@functools.cache
def case(form: str) -> Case:
    """Return the case of one of FORMS, made once."""
    return laid_out(FORMS[form]())

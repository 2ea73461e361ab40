"""Products of Triton kernels, interpreted, against the decoded value in float64."""

import functools
import math
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.gpu.interpreted import only_here

only_here()

from nearplane import codes, types  # noqa: E402
from nearplane.codes import resident  # noqa: E402
from nearplane.kernels.gpu.header import read_head  # noqa: E402
from nearplane.kernels.gpu.portable import layout as layouts  # noqa: E402
from nearplane.kernels.gpu.portable import linear as products  # noqa: E402
from nearplane.kernels.gpu.portable import plan  # noqa: E402
from nearplane.kernels.gpu.portable.geometry import window_of  # noqa: E402
from nearplane.types import Outliers  # noqa: E402

CPU = torch.device("cpu")
TYPES = (torch.float32, torch.float16, torch.bfloat16)
HALF_UNIT = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
FLOAT32 = 2.0**-24
DEVIATIONS = 6
SCALAR, COLUMN, GROUP = 0, 1, 2


@dataclass(frozen=True)
class Case:
    """A record, its layout, and the weight that it means, in float64."""

    record: Tensor
    layout: Tensor
    held: codes.Unpacked
    weight: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.held.code.shape)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(seed: int, rows: int, columns: int, rate: float | None) -> Outliers | None:
    """Return outliers in about `rate` of all places; a rate above 1 is all of a tile's borders."""
    if rate is None:
        return None
    there = torch.rand(rows, columns, generator=random(seed)) < min(rate, 1)
    if rate > 1:
        there[:] = False
        for row in (0, 31, 32, rows - 1):
            there[min(row, rows - 1), [0, columns - 1]] = True
        there[rows // 2] = True
    start = torch.zeros(rows + 1, dtype=torch.int32)
    start[1:] = there.sum(1).cumsum(0)
    column = there.nonzero()[:, 1].to(torch.int32)
    return Outliers(start, column, 3 * torch.randn(len(column), generator=random(seed)).half())


@functools.cache
def case(
    bits: int,
    rows: int,
    columns: int,
    size: int | None,
    rate: float | None = None,
    dtype: torch.dtype = torch.float16,
    form: int = GROUP,
) -> Case:
    """Return a case; a `size` of None is a row's length."""
    size = columns if size is None else size
    ends = -(2 ** (bits - 1)), 2 ** (bits - 1)
    code = torch.from_numpy(np.random.default_rng(bits).integers(*ends, (rows, columns))).int()
    shape = {SCALAR: (1, 1), COLUMN: (1, columns), GROUP: (rows, -(-columns // size))}[form]
    step = torch.randn(shape, generator=random(rows)).to(dtype).float()
    outliers = some(4, rows, columns, rate)
    return packed(codes.pack(code, step, size, outliers, codes.Dense(bits))[0])


def packed(record: Tensor) -> Case:
    with patch.object(layouts, "MOST_GROWTH", math.inf):
        layout = layouts.pack(record, CPU)
    assert layout is not None
    held = codes.unpack(record)
    weight = resident.value(record, resident.RECORD, *held.code.shape).double()
    return Case(record, layout, held, weight)


def product(made: Case, x: Tensor, bias: Tensor | None = None, processors: int = 1) -> Tensor:
    """Return the product; what it is written to held NaN before, and more NaN around it."""
    with patch.object(products, "processors", lambda device: processors), poison() as guards:
        y = products._linear(x, made.layout, made.shape[0], bias)
    assert all(bool(guard.isnan().all()) for guard in guards)
    return y


class poison:
    """Let `Tensor.new_empty` give tensors full of NaN inside larger ones."""

    def __enter__(self) -> list[Tensor]:
        self.guards: list[Tensor] = []
        self.patch = patch.object(Tensor, "new_empty", self.filled)
        self.patch.start()
        return self.guards

    def __exit__(self, *error: object) -> None:
        self.patch.stop()

    @property
    def filled(self):
        plain = Tensor.new_empty

        def filled(like: Tensor, size, dtype: torch.dtype | None = None, **others) -> Tensor:
            if others:  # the interpreter's own
                return plain(like, size, dtype=dtype, **others)
            count = math.prod(size)
            whole = torch.full((count + 128,), math.nan, dtype=dtype or like.dtype)
            self.guards.extend([whole[:64], whole[64 + count :]])
            return whole[64 : 64 + count].view(size)

        return filled


def assert_product(made: Case, x: Tensor, y: Tensor, bias: Tensor | None = None) -> None:
    """Assert that y is x · weightᵀ + bias, rounded once, but for errors of float32.

    Few rows of 16-bit activations are multiplied by code + zero with zero up to 2^(window · bits),
    and zero times their sum is taken away again: so every term is as large as that, and there are
    twice as many. A sum of n terms of random sign is rounded n times, and no partial sum is larger
    in the mean than scale = √Σ term², so the error is at most scale · 2^−24 · √(n / 3).
    """
    rows, columns = made.shape
    assert y.shape == (*x.shape[:-1], rows) and y.dtype == x.dtype
    expected = x.double() @ made.weight.T
    size = made.weight.abs()
    if x.numel() <= plan.MOST_FEW * columns and x.dtype != torch.float32:
        bits = read_head(made.layout).own[0]
        step = types.spread(made.held.step, made.held.group_size, columns).abs().double()
        size = size + (2 ** (bits * window_of(bits)) + 2**bits) * step
    scale = x.double().square() @ size.square().expand_as(made.weight).T
    if bias is not None:
        expected, scale = expected + bias.double(), scale + bias.double().square()
    last = HALF_UNIT[x.dtype]
    rounded = (last * expected.abs()).clamp_min(2.0**-25 if x.dtype == torch.float16 else 0)
    excess = ((y.double() - expected).abs() - rounded).clamp_min(0) / scale.sqrt().clamp_min(1e-99)
    limit = FLOAT32 * math.sqrt((2 * columns + 16) / 3)
    if x.numel() > plan.MOST_ROWS * columns:
        limit = math.hypot(limit, last / math.sqrt(3))  # the weights were rounded too
    assert excess.isfinite().all()
    assert not (excess > DEVIATIONS * limit).any()
    if excess.numel() >= 64:
        assert excess.square().mean().sqrt() <= limit


def activations(batch: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, columns, generator=random(batch)).to(dtype)


def check(made: Case, batch: int, dtype: torch.dtype, processors: int = 1) -> None:
    rows, columns = made.shape
    x, bias = activations(batch, columns, dtype), activations(1, rows, dtype)[0]
    assert_product(made, x, product(made, x, bias, processors), bias)


# widths, sizes of groups around those of units, shapes that are no multiple of anything
SHAPES = [
    (1, 33, 70, 64, 0.02),
    (2, 33, 133, 64, 0.02),
    (3, 40, 200, 128, 0.05),
    (3, 33, 70, 31, None),
    (4, 33, 70, 31, 0.1),
    (5, 7, 65, 33, 0.02),
    (6, 33, 50, 32, 0.02),
    (7, 1, 65, 64, 0.02),
    (8, 33, 40, 17, 0.02),
    # four tiles to a block
    (3, 128, 128, 128, 0.02),
    (4, 255, 64, 32, 0.02),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [1, 2, 17])
def test_products_are_those_of_the_value(shape, batch):
    bits = shape[0]
    made, dtype = case(*shape), TYPES[(bits + batch) % 3]
    check(made, batch, dtype)


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_number_of_rows_in_every_type(batch, dtype):
    check(case(3, 33, 133, 64, 0.03), batch, dtype)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("batch", [1, 9])
def test_columns_are_shared_out_to_programs(bits, batch):
    """One processor takes all columns; many take a share each, added in one order."""
    made, x = case(bits, 40, 1100, 128, 0.02), activations(batch, 1100, torch.bfloat16)
    launch = plan.few if batch <= plan.MOST_FEW else plan.many
    assert launch(read_head(made.layout), x.dtype, batch, True, 9).splits > 1
    check(made, batch, torch.bfloat16, processors=9)
    check(made, batch, torch.float32, processors=9)


def test_empty_and_folded_batches():
    made = case(3, 33, 70, 64, 0.02)
    assert product(made, torch.zeros(0, 70)).shape == (0, 33)
    x = activations(6, 70, torch.float32)
    together = product(made, x)
    assert torch.equal(product(made, x.view(2, 3, 70)), together.view(2, 3, 33))
    assert torch.equal(product(made, x.T.contiguous().T), together)


def test_more_rows_than_kernels_take_are_multiplied_by_the_weight():
    check(case(3, 33, 70, 64, 0.02), plan.MOST_ROWS + 1, torch.bfloat16)


@pytest.mark.parametrize("form", [SCALAR, COLUMN])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_one_step_or_one_a_column(form, dtype):
    made = case(4, 33, 70, None, 0.05, torch.float32, form)
    for batch in (1, 2, 9):
        check(made, batch, dtype)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [64, None])
def test_steps_of_every_type(kind, size):
    made = case(3, 33, 133, size, None, kind)
    for batch in (1, 9):
        check(made, batch, torch.bfloat16)


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 128, 129])
@pytest.mark.parametrize("rate", [0.0, 2.0, 1.0])
def test_outliers_at_borders_none_or_everywhere(rows, rate):
    made = case(3, rows, 37, 32, rate)
    check(made, 1, torch.float16)
    check(made, 8, torch.float32)
    assert torch.equal(products.weight(made.layout, torch.float32).double(), made.weight)


def test_one_outlier_in_every_place():
    """Lanes at the ends of a tile, and others."""
    for row in (0, 1, 5, 30, 31, 32):
        code, step = torch.zeros(33, 5, dtype=torch.int32), torch.ones(33, 1)
        start = torch.zeros(34, dtype=torch.int32)
        start[row + 1 :] = 1
        column = torch.tensor([row * 3 % 5], dtype=torch.int32)
        outliers = Outliers(start, column, torch.tensor([2.5]).half())
        made = packed(codes.pack(code, step, 5, outliers, codes.Dense(2))[0])
        x = torch.arange(1.0, 6.0)[None]
        assert torch.equal(product(made, x).double(), x.double() @ made.weight.T)


@pytest.mark.parametrize("low", [-3, 0, 100, -256])
def test_integers_that_begin_anywhere(low):
    code = low + torch.from_numpy(np.random.default_rng(1).integers(0, 8, (20, 40))).int()
    made = packed(codes.pack(code, torch.randn(20, 1), 40, None, codes.Dense(3))[0])
    size = 2**9 + abs(low)  # of what is multiplied, beside the integers themselves
    for batch in (1, 8):
        x = activations(batch, 40, torch.bfloat16)
        y, expected = product(made, x).double(), x.double() @ made.weight.T
        slack = size * FLOAT32 * 40 * (x.abs().amax() * made.held.step.abs().amax())
        assert ((y - expected).abs() <= 2.0**-8 * expected.abs() + slack).all()
    assert torch.equal(products.weight(made.layout, torch.float32).double(), made.weight)


def test_small_integers_are_exact():
    """Sums of small integers times powers of two have no rounding, whatever stands for zero."""
    for bits in range(1, 9):
        for size in (min(1 + 13 * bits, 70), 32):
            code = np.random.default_rng(size).integers(
                -(2 ** (bits - 1)), 2 ** (bits - 1), (9, 70)
            )
            step = torch.tensor([0.5, 1.0, -2.0])[torch.arange(9 * -(-70 // size)) % 3].view(9, -1)
            record = codes.pack(torch.from_numpy(code).int(), step, size, None, codes.Dense(bits))[
                0
            ]
            made = packed(record)
            for batch, dtype in ((1, torch.bfloat16), (2, torch.float16), (1, torch.float32)):
                x = torch.randint(-2, 3, (batch, 70), generator=random(bits)).to(dtype)
                expected = (x.double() @ made.weight.T).float().to(dtype)
                assert torch.equal(product(made, x), expected)


def test_a_row_of_a_batch_is_what_it_is_alone_up_to_rounding():
    made, x = case(4, 40, 200, 128, 0.05), activations(9, 200, torch.float32)
    alone = torch.cat([product(made, row[None]) for row in x])
    assert_product(made, x, alone)
    for first, end in ((0, 2), (2, 6)):
        assert torch.equal(product(made, x[first:end]), alone[first:end])


def test_wrong_shapes_are_refused():
    made = case(3, 33, 70, 64, 0.02)
    with pytest.raises(ValueError, match="33 x 70"):
        products.linear(torch.zeros(1, 71), made.layout, 33)
    with pytest.raises(ValueError, match="33 x 70"):
        products.linear(torch.zeros(1, 70), made.layout, 34)


def test_gradients_and_bias():
    made = case(3, 33, 70, 64, 0.02)
    x = activations(2, 70, torch.float32).requires_grad_()
    bias = torch.zeros(33, requires_grad=True)
    products.linear(x, made.layout, 33, bias).sum().backward()
    expected = made.weight.sum(0).expand(2, 70)
    assert x.grad is not None and torch.allclose(x.grad.double(), expected, rtol=1e-4, atol=1e-4)
    assert bias.grad is not None and torch.equal(bias.grad, torch.full((33,), 2.0))


def test_the_operator_is_what_compilers_and_autograd_need():
    made = case(3, 33, 70, 64, 0.02)
    for batch in (1, 8):
        x = activations(batch, 70, torch.float32).requires_grad_()
        for bias in (None, torch.zeros(33)):
            inputs = x, made.layout, 33, bias
            tests = "test_schema", "test_autograd_registration", "test_faketensor"
            operator = torch.ops.nearplane.triton_linear.default
            torch.library.opcheck(operator, inputs, test_utils=tests)


@pytest.mark.long
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("size", [1, 2, 15, 31, 32, 33, 64, 100, 128, 129, 130])
def test_groups_of_every_size(bits, size):
    for form, rows in ((GROUP, 70), (GROUP, 129)):
        made = case(bits, rows, 130, size, 0.03, torch.float16, form)
        for batch in (1, 2, 7, 8, 17):
            check(made, batch, TYPES[batch % 3], processors=1 + batch % 5)

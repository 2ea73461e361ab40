"""How a product or a decoding is spread over a GPU: programs, arguments, blocks, shared memory."""

import ctypes
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nearplane.kernels.gpu.cuda.programs import Program, parts, program
from nearplane.kernels.gpu.cuda.sections import (
    BLOCK,
    ROWS,
    SHELF,
    Shape,
    group_of,
    groups,
    row_blocks,
    sections,
    shape_of,
    shelves,
)
from nearplane.kernels.gpu.header import Head

WARPS = 8  # of a thread block, or fewer where they do not come out even
STAGE_BYTES = 2**13  # of activations in shared memory at a time, or those of one tile a warp
# what work is cut for: GPUs as they are common
MULTIPROCESSORS, SHARED, RESERVED, MOST_SHARED = 108, 100 << 10, 1 << 10, 99 << 10
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # rows of activations that kernels are compiled for
MOST_COLUMNS = 32  # of a tensor core's product: rows of activations times their parts
PLACES = (
    *("tile", "data", "table", "field", "row", "source", "step"),
    *("first", "count", "column", "value"),
)
_u32, _u64, _pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p


class Args(ctypes.Structure):
    """What a kernel is told (src/args.cuh)."""

    _fields_ = [
        *((name, _pointer) for name in ("layout", "x", "y", "bias")),
        *((f"at_{name}", _u64) for name in PLACES),
        *((name, _u32) for name in ("rows", "columns", "batch", "row_blocks", "tiles")),
        *((name, _u32) for name in ("tile_columns", "tile_bytes", "splits", "passes", "stage")),
        *(
            (name, _u32)
            for name in ("group", "wide_group", "groups", "tables", "fields", "field_tiles")
        ),
        ("scale", ctypes.c_float),
    ]


@dataclass(frozen=True)
class Launch:
    """A program with its arguments, on `grid` thread blocks of `shared` bytes each."""

    program: Program
    args: Args
    grid: int
    shared: int


class Machine(Protocol):
    """What runs a launch: a GPU through its driver, or a CPU that plays one."""

    def run(self, launch: Launch, device: torch.device) -> None: ...


def most_rows(head: Head, dtype: torch.dtype) -> int:
    """Return how many rows of activations a product may have; more are for a decoded weight."""
    return MOST_COLUMNS // parts(head, dtype)


@dataclass(frozen=True)
class Cut:
    """How a product is spread over warps (src/args.cuh)."""

    splits: int
    blocks: int
    shape: Shape
    numbers: int

    @property
    def warps(self) -> int:
        return self.splits * self.blocks

    @property
    def passes(self) -> int:
        return -(-self.shape.tiles // self.splits)

    @property
    def stage(self) -> int:
        """Passes whose activations are in shared memory at a time."""
        of_pass = 2 * self.numbers * self.splits * self.shape.tile_columns
        return max(1, min(self.passes, STAGE_BYTES // of_pass))

    @property
    def shared(self) -> int:
        """Bytes of shared memory: tables and tiles, activations and a constant; then sums."""
        staged = self.numbers * _stride(self.stage * self.splits * self.shape.tile_columns) + 16
        codes = self.shape.fields * _table(self.shape) + self.warps * self.shape.tile_bytes
        return max(codes + staged, 4 * self.warps * self.numbers * ROWS)

    def at_work(self, blocks: int) -> float:
        """Return the warps that work at a time, idle ones of a last pass left out."""
        together = MULTIPROCESSORS * (SHARED // (self.shared + RESERVED))
        share = self.shape.tiles / (self.passes * self.splits)
        return min(together, -(-blocks // self.blocks)) * self.warps * share


def product(layout: Tensor, head: Head, x: Tensor, bias: Tensor | None, y: Tensor) -> Launch:
    """Return the launch that sets y (batch, rows) = x (batch, columns) · weightᵀ + bias."""
    batch = next(size for size in BATCHES if size >= len(x))
    args = _args(layout, head, y)
    cut = _cut(shape_of(head), parts(head, x.dtype) * batch, args.row_blocks)
    args.x, args.batch = x.data_ptr(), len(x)
    args.bias = None if bias is None else bias.data_ptr()
    args.splits, args.passes, args.stage = cut.splits, cut.passes, cut.stage
    made = program(head, "product", x.dtype, 32 * cut.warps, batch)
    return Launch(made, args, -(-args.row_blocks // cut.blocks), cut.shared)


def weight(layout: Tensor, head: Head, out: Tensor, as_laid: bool = False) -> Launch:
    """Return the launch that decodes the whole weight into `out`, or its codes if that is int32.

    - `as_laid`: with rows and columns in the order of the layout.
    """
    shape = shape_of(head)
    args = _args(layout, head, out)
    shared = _table(shape) + SHELF * shape.tile_bytes
    made = program(head, "weight", out.dtype, 32 * SHELF, as_laid=as_laid)
    return Launch(made, args, shelves(head.rows) * shape.tiles, shared)


def _cut(shape: Shape, numbers: int, blocks: int) -> Cut:
    """Return how many warps share a row block's columns, and row blocks a thread block."""
    # row blocks of a thread block divide SHELF, so that they are in one
    cuts = [
        Cut(splits, 1 << ((WARPS // splits).bit_length() - 1), shape, numbers)
        for splits in range(1, min(WARPS, shape.tiles) + 1)
    ]
    allowed = [cut for cut in cuts if cut.shared <= MOST_SHARED] or cuts[:1]
    return max(allowed, key=lambda cut: (cut.at_work(blocks), cut.splits))


def _table(shape: Shape) -> int:
    return 1 << (shape.window + 7) if shape.window else 0


def _stride(columns: int) -> int:
    return 2 * (columns + 32) + 64 * (columns // BLOCK % 2)


def _args(layout: Tensor, head: Head, y: Tensor) -> Args:
    shape = shape_of(head)
    places = sections(head.rows, head.columns, head.step_form, head.step_type, shape)
    return Args(
        layout=layout.data_ptr(),
        y=y.data_ptr(),
        **{f"at_{name}": places[name] for name in PLACES},
        rows=head.rows,
        columns=head.columns,
        row_blocks=row_blocks(head.rows),
        tiles=shape.tiles,
        tile_columns=shape.tile_columns,
        tile_bytes=shape.tile_bytes,
        group=group_of(head),
        wide_group=shape.wide_group,
        groups=1 if shape.window else groups(head.columns, head.step_form, shape),
        tables=shape.tables,
        fields=shape.fields,
        field_tiles=-(-shape.tiles // max(1, shape.fields)),
        scale=shape.scale,
    )

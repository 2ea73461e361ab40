"""How work is spread over a GPU: the program, arguments, grid and shared memory of a launch."""

import ctypes
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Int32
from torch import Tensor

from nearplane.kernels.gpu.cuda.programs import Program, parts, program
from nearplane.kernels.gpu.cuda.sections import (
    BLOCK,
    ROW_GROUP,
    ROWS,
    Shape,
    group_of,
    groups,
    row_blocks,
    row_groups,
    sections,
    shape_of,
)
from nearplane.kernels.gpu.header import Head

WARPS = 8  # most warps of a thread block
STAGE_BYTES = 2**13  # activations in shared memory at a time, but at least those of one tile
# work is split for a common GPU: multiprocessors, and bytes of shared memory of each, reserved for
# each thread block, and most for one thread block
MULTIPROCESSORS, SHARED, RESERVED, MOST_SHARED = 108, 100 << 10, 1 << 10, 99 << 10
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # batch sizes that kernels are compiled for
MOST_COLUMNS = 32  # of a product on tensor cores: rows of activations times bf16 parts of each
PLACES = (
    *("tile", "data", "table", "field", "row", "source", "step", "row_step"),
    *("first", "count", "column", "value"),
)
_u32, _u64, _pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p


class Args(ctypes.Structure):
    """The arguments of a kernel: `Args` in src/args.cuh, which explains the fields."""

    _fields_ = [
        *((name, _pointer) for name in ("layout", "x", "y", "bias", "wanted")),
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
    """A program, its arguments, the number of thread blocks, and shared memory bytes of each."""

    program: Program
    args: Args
    grid: int
    shared: int


class Machine(Protocol):
    """Something that runs launches: a GPU, or in tests a CPU that emulates one."""

    def run(self, launch: Launch, device: torch.device) -> None: ...


def most_rows(head: Head, dtype: torch.dtype) -> int:
    """Return the largest batch for these kernels; larger ones use the decoded weight."""
    return MOST_COLUMNS // parts(head, dtype)


@dataclass(frozen=True)
class WarpSplit:
    """How a product is split over warps (src/args.cuh).

    - `splits`: warps that share the columns of a row block.
    - `blocks`: row blocks of a thread block.
    - `numbers`: columns of the tensor core product: bf16 parts of all activation rows.
    """

    splits: int
    blocks: int
    shape: Shape
    numbers: int

    @property
    def warps(self) -> int:
        """Warps of a thread block."""
        return self.splits * self.blocks

    @property
    def passes(self) -> int:
        """Tiles that each warp takes, one after the other."""
        return -(-self.shape.tiles // self.splits)

    @property
    def stage(self) -> int:
        """Passes for which activations are in shared memory at a time."""
        of_pass = 2 * self.numbers * self.splits * self.shape.tile_columns
        return max(1, min(self.passes, STAGE_BYTES // of_pass))

    @property
    def shared(self) -> int:
        """Bytes of shared memory: code tables, tiles and activations; at the end, partial sums."""
        staged = self.numbers * _stride(self.stage * self.splits * self.shape.tile_columns) + 16
        codes = self.shape.fields * _table(self.shape) + self.warps * self.shape.tile_bytes
        return max(codes + staged, 4 * self.warps * self.numbers * ROWS)

    def at_work(self, blocks: int) -> float:
        """Return how many warps work at a time, without those that are idle in the last pass."""
        together = MULTIPROCESSORS * (SHARED // (self.shared + RESERVED))
        share = self.shape.tiles / (self.passes * self.splits)
        return min(together, -(-blocks // self.blocks)) * self.warps * share


def product(layout: Tensor, head: Head, x: Tensor, bias: Tensor | None, y: Tensor) -> Launch:
    """Return the launch that sets y (batch, rows) = x (batch, columns) · weightᵀ + bias."""
    batch = next(size for size in BATCHES if size >= len(x))
    args = _args(layout, head, y)
    split = _warp_split(shape_of(head), parts(head, x.dtype) * batch, args.row_blocks)
    args.x, args.batch = x.data_ptr(), len(x)
    args.bias = None if bias is None else bias.data_ptr()
    args.splits, args.passes, args.stage = split.splits, split.passes, split.stage
    made = program(head, "product", x.dtype, 32 * split.warps, batch)
    return Launch(made, args, -(-args.row_blocks // split.blocks), split.shared)


def weight(
    layout: Tensor,
    head: Head,
    out: Tensor,
    as_laid: bool = False,
    wanted: Int32[Tensor, " some"] | None = None,
) -> Launch:
    """Return the launch that decodes the weight into `out`; its codes if `out` is int32.

    - `as_laid`: rows and columns stay in the order of the layout, which may be sorted.
    - `wanted`: row groups, the only ones that are decoded; their rows, in the order of the layout,
      follow each other in `out`.
    """
    shape = shape_of(head)
    args = _args(layout, head, out)
    shared = _table(shape) + ROW_GROUP * shape.tile_bytes
    made = program(head, "weight", out.dtype, 32 * ROW_GROUP, as_laid=as_laid)
    args.wanted = None if wanted is None else wanted.data_ptr()
    count = row_groups(head.rows) if wanted is None else len(wanted)
    return Launch(made, args, count * shape.tiles, shared)


def _warp_split(shape: Shape, numbers: int, blocks: int) -> WarpSplit:
    """Return the split that keeps most warps busy within the limit of shared memory."""
    # the row blocks of a thread block are a divisor of ROW_GROUP, so that all are in one row group
    candidates = [
        WarpSplit(splits, 1 << ((WARPS // splits).bit_length() - 1), shape, numbers)
        for splits in range(1, min(WARPS, shape.tiles) + 1)
    ]
    allowed = [split for split in candidates if split.shared <= MOST_SHARED] or candidates[:1]
    return max(allowed, key=lambda split: (split.at_work(blocks), split.splits))


def _table(shape: Shape) -> int:
    """Return the bytes of a code table in shared memory: a copy for each of 32 lanes."""
    return 1 << (shape.window + 7) if shape.window else 0


def _stride(columns: int) -> int:
    """Return the bytes of one row of activations in shared memory, with padding."""
    return 2 * (columns + 32) + 64 * (columns // BLOCK % 2)


def _args(layout: Tensor, head: Head, y: Tensor) -> Args:
    shape = shape_of(head)
    places = sections(head.rows, head.columns, head.step_form, head.step_type, shape)
    if not shape.row_steps:
        places["row_step"] = 0
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

"""The launch parameters of every Triton kernel, for a launch or for compiling without a GPU."""

import functools

import torch

from nearplane.codes.header import COLUMN
from nearplane.kernels.gpu.header import Head
from nearplane.kernels.gpu.portable import layout as layouts
from nearplane.kernels.gpu.portable.geometry import LANES, VECTOR, Geometry
from nearplane.kernels.gpu.portable.start import Launch

MOST_FEW = 4  # largest batch for `product_few`, which does not use tensor cores
MOST_ROWS = (
    64  # largest batch for these kernels; for more the weight is decoded, and torch multiplies
)
WARPS = 4
PROGRAMS = 4  # columns are split until each multiprocessor has so many programs
ONE = 0x3F800000  # the bits of 1.0 in float32


@functools.lru_cache(4096)
def few(head: Head, dtype: torch.dtype, batch: int, has_bias: bool, processors: int) -> Launch:
    """Return the launch of `product_few`."""
    made = layouts.geometry_of(head)
    wide = _power_of_two(batch)
    # as many tiles as registers can hold the sums of
    tiles = min(4 if wide <= 2 else 2, made.stack)
    across, turns = -(-made.tiles // tiles), -(-made.runs // WARPS)
    splits = _splits(turns, across, processors)
    per_split = -(-turns // splits) * WARPS
    splits = -(-made.runs // per_split)
    numbers = _numbers(head, made) | {"batch": batch, "splits": splits}
    numbers |= {"runs_per_split": per_split, "one": ONE}
    constants = _constants(head, made) | {
        "MASKS": _masks(made),
        "STRIPES": made.stripes * head.has_outliers,
        "BIAS": has_bias and splits == 1,
        "EXACT": dtype == torch.float32 or head.step_form == COLUMN,
        "SPLIT": splits > 1,
        "B": wide,
        "R": tiles,
        "K": WARPS,
    }
    registers = 128 * wide if wide < 4 else None
    return Launch(
        "product_few", (across, splits), numbers, constants, splits, WARPS, True, registers
    )


@functools.lru_cache(4096)
def many(head: Head, dtype: torch.dtype, batch: int, has_bias: bool, processors: int) -> Launch:
    """Return the launch of `product_many`; of `product_any` if units have steps of their own."""
    made = layouts.geometry_of(head)
    by_runs = made.join == VECTOR
    high, wide = 64, min(32, max(16, _power_of_two(batch)))
    width = min(64, max(16, _power_of_two(head.group_size)))
    turns = made.runs if by_runs else made.groups * -(-head.group_size // width)
    down, across = -(-head.rows // high), -(-batch // wide)
    splits = _splits(turns, down * across, processors)
    per_split = -(-turns // splits)
    splits = -(-turns // per_split)
    numbers = _numbers(head, made) | {"batch": batch, "splits": splits}
    constants = _constants(head, made) | {
        "STRIPES": made.stripes * head.has_outliers,
        "BIAS": has_bias and splits == 1,
        "PARTS": 3 if dtype == torch.float32 or head.step_form == COLUMN else 1,
        "SPLIT": splits > 1,
        "M": high,
        "N": wide,
    }
    if by_runs:
        numbers |= {"runs_per_split": per_split, "one": ONE}
    else:
        numbers |= {"pieces": turns, "pieces_per_split": per_split}
        constants |= {"PER_GROUP": -(-head.group_size // width), "WIDTH": width}
    kernel = "product_many" if by_runs else "product_any"
    return Launch(kernel, (down, across, splits), numbers, constants, splits)


@functools.lru_cache(4096)
def combine(head: Head, batch: int, splits: int, has_bias: bool) -> Launch:
    """Return the launch of `combine`, which adds the partial results of the splits."""
    numbers = {"rows": head.rows, "batch": batch, "splits": splits}
    constants = {"BIAS": has_bias, "WIDTH": 128}
    return Launch("combine", (-(-head.rows // 128), batch), numbers, constants)


@functools.lru_cache(4096)
def decode(head: Head) -> Launch:
    """Return the launch of `decode`, which writes step · code."""
    made = layouts.geometry_of(head)
    numbers = {name: n for name, n in _numbers(head, made).items() if name in DECODED}
    grid = -(-head.rows // LANES), -(-head.columns // 64)
    constants = _constants(head, made) | {"M": LANES, "WIDTH": 64}
    return Launch("decode", grid, numbers, constants, fuses=False)


@functools.lru_cache(4096)
def decode_outliers(head: Head) -> Launch:
    """Return the launch of `decode_outliers`, which overwrites the elements with outliers."""
    made = layouts.geometry_of(head)
    constants = _constants(head, made) | {"STRIPES": made.stripes, "SLOTS": 4}
    grid = -(-head.rows // LANES), made.stripes
    return Launch("decode_outliers", grid, _numbers(head, made), constants, fuses=False)


# the arguments that `decode` takes
DECODED = ("steps_at", "rows", "columns", "group_size", "runs")


def _numbers(head: Head, made: Geometry) -> dict[str, int]:
    """Return the arguments that describe a layout."""
    at = layouts.sections_of(head)
    return {
        "steps_at": at.steps,
        "counts_at": at.counts,
        "starts_at": at.starts,
        "entries_at": at.entries,
        "rows": head.rows,
        "columns": head.columns,
        "group_size": head.group_size,
        "tiles": made.tiles,
        "runs": made.runs,
    }


def _constants(head: Head, made: Geometry) -> dict[str, int | bool]:
    """Return the arguments that describe a layout and are known at compile time."""
    return {
        "BITS": made.bits,
        "LOW": layouts.low_of(head),
        "JOIN": made.join,
        "RUN": made.run,
        "JOINTS": made.joints,
        "STACK": made.stack,
        "STEP": head.own[2],
        "FORM": head.step_form,
    }


def _masks(made: Geometry) -> int:
    """Return how loads of activations are masked against padding.

    0: there is no padding; 1: the `join` columns that are loaded together are all there, or none;
    2: any column may be padding.
    """
    if made.is_whole:
        return 0
    return 1 if made.columns % made.join == made.group_size % made.join == 0 else 2


def _splits(turns: int, across: int, processors: int) -> int:
    """Return into how many parts to split the columns, so that no multiprocessor is idle."""
    return max(1, min(turns, -(-PROGRAMS * processors // across)))


def _power_of_two(n: int) -> int:
    """Return the least power of two that is not below n."""
    return 1 << (n - 1).bit_length()

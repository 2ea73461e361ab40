"""Triton kernels that decode a weight, and one that adds partial results."""

from typing import no_type_check

import triton
import triton.language as tl

from nearplane.kernels.gpu.portable.few import section, steps_section


@triton.jit
@no_type_check
def integers(
    layout,
    row,
    column,
    group_size,
    runs,
    BITS: tl.constexpr,
    LOW: tl.constexpr,
    JOIN: tl.constexpr,
    RUN: tl.constexpr,
    JOINTS: tl.constexpr,
    STACK: tl.constexpr,
):
    """Return the integers at (row, column), tensors that broadcast to one shape, as float32."""
    FIELDS: tl.constexpr = 32 // (BITS & -BITS)
    WORDS: tl.constexpr = BITS // (BITS & -BITS)
    inside = column % group_size
    joint = column // group_size * JOINTS + inside // (FIELDS * JOIN)
    unit = joint % (4 // JOIN) * JOIN + inside % JOIN
    bit = inside % (FIELDS * JOIN) // JOIN * BITS + 23 - 9 // BITS * BITS
    word = bit // 32 % WORDS
    across = (joint // (4 // JOIN) * WORDS) * (STACK * 128) + unit
    tile = row // 32
    chunks = runs * (RUN * WORDS * STACK * 128)
    down = tile // STACK * chunks + tile % STACK * 128 + row % 32 * 4
    words = section(layout, 256, tl.uint32) + down
    bits = tl.load(words + (across + word * (STACK * 128)))
    above = bits
    if WORDS > 1:
        above = tl.load(words + (across + (word + 1) % WORDS * (STACK * 128)))
    # a funnel shift by 0 to 31
    bits = (bits >> (bit % 32)) | ((above << 1) << (31 - bit % 32))
    # put the code into the mantissa of 2^23: the float 2^23 + code, without a conversion
    raised = ((bits & ((1 << BITS) - 1)) | 0x4B000000).to(tl.float32, bitcast=True)
    return raised - (8388608 - LOW)


@triton.jit
@no_type_check
def steps_of(
    layout,
    steps_at,
    row,
    column,
    columns,
    group_size,
    STACK: tl.constexpr,
    STEP: tl.constexpr,
    FORM: tl.constexpr,
):
    """Return the steps at (row, column), tensors that broadcast to one shape."""
    steps = steps_section(layout, steps_at, STEP)
    if FORM == 0:
        at = row * 0 + column * 0
    elif FORM == 1:
        at = row * 0 + column
    else:
        groups = (columns + group_size - 1) // group_size
        group = column // group_size
        tile = row // 32
        at = ((tile // STACK * groups + group) * 32 + row % 32) * STACK + tile % STACK
    return tl.load(steps + at).to(tl.float32)


@triton.jit
@no_type_check
def combine(partial, bias, y, rows, batch, splits, BIAS: tl.constexpr, WIDTH: tl.constexpr):
    """Add the partial results of all splits for one activation row, always in the same order."""
    row = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    there, b = row < rows, tl.program_id(1)
    total = tl.zeros((WIDTH,), tl.float32)
    for split in range(splits):
        total += tl.load(partial + (split * batch + b) * rows + row, mask=there, other=0)
    if BIAS:
        total += tl.load(bias + row, mask=there, other=0).to(tl.float32)
    tl.store(y + b * rows + row, total, mask=there)


@triton.jit
@no_type_check
def decode(
    layout,
    out,
    steps_at,
    rows,
    columns,
    group_size,
    runs,
    BITS: tl.constexpr,
    LOW: tl.constexpr,
    JOIN: tl.constexpr,
    RUN: tl.constexpr,
    JOINTS: tl.constexpr,
    STACK: tl.constexpr,
    STEP: tl.constexpr,
    FORM: tl.constexpr,
    M: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Write step · code, computed in float32."""
    row = (tl.program_id(0) * M + tl.arange(0, M))[:, None]
    column = (tl.program_id(1) * WIDTH + tl.arange(0, WIDTH))[None, :]
    there = (row < rows) & (column < columns)
    row, column = tl.minimum(row, rows - 1), tl.minimum(column, columns - 1)
    code = integers(layout, row, column, group_size, runs, BITS, LOW, JOIN, RUN, JOINTS, STACK)
    step = steps_of(layout, steps_at, row, column, columns, group_size, STACK, STEP, FORM)
    tl.store(out + row.to(tl.int64) * columns + column, code * step, mask=there)


@triton.jit
@no_type_check
def decode_outliers(
    layout,
    out,
    steps_at,
    counts_at,
    starts_at,
    entries_at,
    rows,
    columns,
    group_size,
    tiles,
    runs,
    BITS: tl.constexpr,
    LOW: tl.constexpr,
    JOIN: tl.constexpr,
    RUN: tl.constexpr,
    JOINTS: tl.constexpr,
    STACK: tl.constexpr,
    STEP: tl.constexpr,
    FORM: tl.constexpr,
    STRIPES: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Write step · code + outlier where there are outliers; a program has one tile and stripe."""
    tile, stripe = tl.program_id(0), tl.program_id(1)
    place = tl.arange(0, 32)
    # the inverse of geometry.place_of, since 5 · 13 = 65 is 1 modulo 32
    row = (tile * 32 + place * 13 % 32)[None, :]
    count = tl.load(section(layout, counts_at, tl.int32) + (stripe * tiles + tile) * 32 + place)
    start = tl.load(section(layout, starts_at, tl.int32) + tile * STRIPES + stripe)
    entries = section(layout, entries_at, tl.uint32) + start * 32 + place[None, :]
    for first in range(0, tl.max(count), SLOTS):
        slot = first + tl.arange(0, SLOTS)[:, None]
        there = slot < count[None, :]
        entry = tl.load(entries + slot * 32, mask=there, other=0)
        value = (entry >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
        column = (entry & 0xFFFF).to(tl.int32) + stripe * 65536
        code = integers(layout, row, column, group_size, runs, BITS, LOW, JOIN, RUN, JOINTS, STACK)
        step = steps_of(layout, steps_at, row, column, columns, group_size, STACK, STEP, FORM)
        dense = code * step + value
        tl.store(out + row.to(tl.int64) * columns + column, dense, mask=there)

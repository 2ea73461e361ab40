"""Triton kernels: products of many rows of activations with codes, on tensor cores."""

from typing import no_type_check

import triton
import triton.language as tl

from nearplane.kernels.gpu.portable.decoding import integers, steps_of
from nearplane.kernels.gpu.portable.few import raised, section, steps_section, zero_of


@triton.jit
@no_type_check
def product_many(
    x,
    layout,
    bias,
    y,
    steps_at,
    counts_at,
    starts_at,
    entries_at,
    rows,
    columns,
    batch,
    group_size,
    tiles,
    runs,
    splits,
    runs_per_split,
    one,
    BITS: tl.constexpr,
    LOW: tl.constexpr,
    JOIN: tl.constexpr,
    RUN: tl.constexpr,
    JOINTS: tl.constexpr,
    STACK: tl.constexpr,
    STEP: tl.constexpr,
    FORM: tl.constexpr,
    STRIPES: tl.constexpr,
    BIAS: tl.constexpr,
    PARTS: tl.constexpr,
    SPLIT: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Multiply many rows of activations, where the chunks of a run share a step.

    A program has M rows of the weight, N rows of activations and a part of the runs of columns.
    An activation is one 16-bit number, or the sum of PARTS = 3 of them for float32. If a run has
    fewer than 16 units, MERGE codes of each unit make up the 16 columns of a tensor core product.
    """
    FIELDS: tl.constexpr = 32 // (BITS & -BITS)
    WORDS: tl.constexpr = BITS // (BITS & -BITS)
    WIDTH: tl.constexpr = 16 if RUN < 4 else 4 * RUN
    MERGE: tl.constexpr = WIDTH // (4 * RUN)
    row = tl.program_id(0) * M + tl.arange(0, M)
    inside = tl.minimum(row, tiles * 32 - 1)[:, None]
    n = tl.program_id(1) * N + tl.arange(0, N)
    at = tl.minimum(n, batch - 1)[None, :] * columns
    end = tl.minimum((tl.program_id(2) + 1) * runs_per_split, runs)
    tile, unit = inside // 32, tl.arange(0, 4 * RUN)[None, :]
    words = section(layout, 256, tl.uint32)
    words += tile // STACK * (runs * (RUN * WORDS * STACK * 128)) + tile % STACK * 128
    words += inside % 32 * 4 + unit // 4 * (WORDS * STACK * 128) + unit % 4
    place = tl.arange(0, WIDTH)
    across = place // MERGE // 4 * (4 * FIELDS) + place % MERGE * 4 + place // MERGE % 4
    total = tl.zeros((M, N), tl.float32)
    for run in range(tl.program_id(2) * runs_per_split, end):
        held = ()
        for word in tl.static_range(WORDS):
            held += (tl.load(words + (run * (RUN * WORDS) + word) * (STACK * 128)),)
        first = run * RUN // JOINTS * group_size
        column = run * RUN % JOINTS * (4 * FIELDS) + across
        left = tl.minimum(group_size, columns - first) - column
        column += first
        part = tl.zeros((M, N), tl.float32)
        for i in tl.static_range(0, FIELDS, MERGE):
            code = fields(held, one, i, BITS, LOW, MERGE)
            there = (left > 4 * i)[:, None]
            xs = tl.load(x + at + (column + 4 * i)[:, None], mask=there, other=0)
            if PARTS == 1:
                part = tl.dot(code.to(x.dtype.element_ty), xs, part, out_dtype=tl.float32)
            else:
                xs = xs.to(tl.float32)
                if FORM == 1:
                    steps = steps_section(layout, steps_at, STEP) + column + 4 * i
                    xs *= tl.load(steps, mask=left > 4 * i, other=0).to(tl.float32)[:, None]
                part += product_in_parts(code.to(tl.bfloat16), xs)
        if FORM == 2:
            part *= steps_of(
                layout, steps_at, inside, first, columns, group_size, STACK, STEP, FORM
            )
        total += part
    if FORM == 0:
        total *= tl.load(steps_section(layout, steps_at, STEP)).to(tl.float32)
    total = outliers_many(
        x, layout, counts_at, starts_at, entries_at, inside, at, tiles, splits, total, STRIPES
    )
    finish(bias, y, total, row, n, rows, batch, BIAS, SPLIT)


@triton.jit
@no_type_check
def fields(
    held, one, FIELD: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr, MERGE: tl.constexpr
):
    """Return MERGE integers of every unit, those of one unit side by side, as float32."""
    code = raised(held, one, FIELD, BITS) - zero_of(FIELD, BITS, LOW)
    if MERGE == 2:
        second = raised(held, one, FIELD + 1, BITS) - zero_of(FIELD + 1, BITS, LOW)
        code = tl.join(code, second)
        code = tl.reshape(code, (code.shape[0], 16))
    elif MERGE == 4:
        second = raised(held, one, FIELD + 1, BITS) - zero_of(FIELD + 1, BITS, LOW)
        third = raised(held, one, FIELD + 2, BITS) - zero_of(FIELD + 2, BITS, LOW)
        fourth = raised(held, one, FIELD + 3, BITS) - zero_of(FIELD + 3, BITS, LOW)
        code = tl.join(tl.join(code, third), tl.join(second, fourth))
        code = tl.reshape(code, (code.shape[0], 16))
    return code


@triton.jit
@no_type_check
def product_any(
    x,
    layout,
    bias,
    y,
    steps_at,
    counts_at,
    starts_at,
    entries_at,
    rows,
    columns,
    batch,
    group_size,
    tiles,
    runs,
    splits,
    pieces,
    pieces_per_split,
    BITS: tl.constexpr,
    LOW: tl.constexpr,
    JOIN: tl.constexpr,
    RUN: tl.constexpr,
    JOINTS: tl.constexpr,
    STACK: tl.constexpr,
    STEP: tl.constexpr,
    FORM: tl.constexpr,
    STRIPES: tl.constexpr,
    BIAS: tl.constexpr,
    PARTS: tl.constexpr,
    SPLIT: tl.constexpr,
    PER_GROUP: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Multiply many rows of activations, for any group size.

    A program has M rows of the weight, N rows of activations and a part of the pieces; a piece is
    WIDTH columns of one group. An activation is one 16-bit number, or the sum of PARTS = 3 of them
    for float32.
    """
    row = tl.program_id(0) * M + tl.arange(0, M)
    inside = tl.minimum(row, tiles * 32 - 1)[:, None]
    n = tl.program_id(1) * N + tl.arange(0, N)
    at = tl.minimum(n, batch - 1)[None, :] * columns
    end = tl.minimum((tl.program_id(2) + 1) * pieces_per_split, pieces)
    total = tl.zeros((M, N), tl.float32)
    for piece in range(tl.program_id(2) * pieces_per_split, end):
        column = piece % PER_GROUP * WIDTH + tl.arange(0, WIDTH)
        first = piece // PER_GROUP * group_size
        there = column < tl.minimum(group_size, columns - first)
        column = tl.where(there, first + column, first)
        code = integers(
            layout, inside, column[None, :], group_size, runs, BITS, LOW, JOIN, RUN, JOINTS, STACK
        )
        xs = tl.load(x + at + column[:, None], mask=there[:, None], other=0)
        if PARTS == 1:
            part = tl.dot(code.to(x.dtype.element_ty), xs, out_dtype=tl.float32)
        else:
            xs = xs.to(tl.float32)
            if FORM == 1:
                xs *= tl.load(steps_section(layout, steps_at, STEP) + column).to(tl.float32)[
                    :, None
                ]
            part = product_in_parts(code.to(tl.bfloat16), xs)
        if FORM == 2:
            step = steps_of(layout, steps_at, inside, first, columns, group_size, STACK, STEP, FORM)
            part *= step
        total += part
    if FORM == 0:
        total *= tl.load(steps_section(layout, steps_at, STEP)).to(tl.float32)
    total = outliers_many(
        x, layout, counts_at, starts_at, entries_at, inside, at, tiles, splits, total, STRIPES
    )
    finish(bias, y, total, row, n, rows, batch, BIAS, SPLIT)


@triton.jit
@no_type_check
def outliers_many(
    x,
    layout,
    counts_at,
    starts_at,
    entries_at,
    inside,
    at,
    tiles,
    splits,
    total,
    STRIPES: tl.constexpr,
):
    """Add the product with the outliers to `total`; `at` is where rows of activations begin."""
    for stripe in tl.static_range(STRIPES):
        tile, place = inside // 32, inside % 32 * 5 % 32
        counts = section(layout, counts_at, tl.int32) + stripe * tiles * 32
        count = tl.load(counts + tile * 32 + place)
        start = tl.load(section(layout, starts_at, tl.int32) + tile * STRIPES + stripe)
        entries = section(layout, entries_at, tl.uint32) + start * 32 + place
        for slot in range(tl.program_id(2), tl.max(count), splits):
            entry = tl.load(entries + slot * 32, mask=slot < count, other=0)
            value = (entry >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
            column = (entry & 0xFFFF).to(tl.int32) + stripe * 65536
            xs = tl.load(x + at + column, mask=slot < count, other=0)
            total = tl.fma(value, xs.to(tl.float32), total)
    return total


@triton.jit
@no_type_check
def finish(bias, y, total, row, n, rows, batch, BIAS: tl.constexpr, SPLIT: tl.constexpr):
    """Write the results, or if SPLIT the partial results of this program."""
    there = (row < rows)[:, None] & (n < batch)[None, :]
    if BIAS:
        total += tl.load(bias + row, mask=row < rows, other=0).to(tl.float32)[:, None]
    if SPLIT:
        n += tl.program_id(2) * batch
    tl.store(y + n[None, :] * rows + row[:, None], total, mask=there)


@triton.jit
@no_type_check
def product_in_parts(code, xs):
    """Return code @ xs for float32 xs, as three products with bf16 numbers that add up to xs."""
    high = xs.to(tl.bfloat16)
    rest = xs - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    total = tl.dot(code, low, out_dtype=tl.float32)
    total = tl.dot(code, middle, total, out_dtype=tl.float32)
    return tl.dot(code, high, total, out_dtype=tl.float32)

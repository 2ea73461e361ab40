"""Triton kernels: products of a few rows of activations with codes of 1 to 8 bits (geometry.py)."""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def raised(held, one, FIELD: tl.constexpr, BITS: tl.constexpr):
    """Return code number FIELD of a unit plus a power of two, as a float32.

    The code is put into the mantissa of the power of two, so that no integer is converted. One
    funnel shift serves 9 // BITS codes; then each code takes one AND-OR instruction.

    - `held`: the words of the unit.
    - `one`: the bits of 1.0. It is an argument, since for a constant the compiler would use two
      instructions.
    """
    WINDOW: tl.constexpr = 9 // BITS
    WORDS: tl.constexpr = BITS // (BITS & -BITS)
    AT: tl.constexpr = FIELD // WINDOW * WINDOW * BITS
    PLACE: tl.constexpr = 23 - (WINDOW - FIELD % WINDOW) * BITS
    bits = held[AT // 32 % WORDS]
    if AT % 32 != 0:
        bits = (bits >> (AT % 32)) | (held[(AT // 32 + 1) % WORDS] << (32 - AT % 32))
    mask: tl.constexpr = ((1 << BITS) - 1) << PLACE
    return ((bits & mask) | (one + ((23 - PLACE) << 23))).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def zero_of(FIELD: tl.constexpr, BITS: tl.constexpr, LOW: tl.constexpr):
    """Return the value of `raised` for the integer 0, which is to be subtracted."""
    WINDOW: tl.constexpr = 9 // BITS
    return (1 << ((WINDOW - FIELD % WINDOW) * BITS)) - LOW


@triton.jit
@no_type_check
def zeros_of(column, BITS: tl.constexpr, LOW: tl.constexpr):
    """Return `zero_of` for the columns of a run of whole chunks, as float32."""
    WINDOW: tl.constexpr = 9 // BITS
    field = column // 4 % (32 // (BITS & -BITS))
    power = 127 + (WINDOW - field % WINDOW) * BITS
    return (power << 23).to(tl.float32, bitcast=True) - LOW


@triton.jit
@no_type_check
def section(layout, at, KIND: tl.constexpr):
    """Return a pointer to the section of a layout at byte `at`."""
    return (layout + at).to(tl.pointer_type(KIND))


@triton.jit
@no_type_check
def steps_section(layout, at, STEP: tl.constexpr):
    """Return a pointer to the steps, whose type is layout.STEP_TYPES[STEP]."""
    if STEP == 0:
        steps = section(layout, at, tl.float32)
    elif STEP == 1:
        steps = section(layout, at, tl.float16)
    else:
        steps = section(layout, at, tl.bfloat16)
    return steps


@triton.jit
@no_type_check
def product_few(
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
    MASKS: tl.constexpr,
    STRIPES: tl.constexpr,
    BIAS: tl.constexpr,
    EXACT: tl.constexpr,
    SPLIT: tl.constexpr,
    B: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
):
    """Multiply a few rows of activations without tensor cores; a lane has a row of the weight.

    A program has R tiles of rows and a part of the runs of columns; its K warps take turns at the
    runs. Names in capitals are those of plan.py and geometry.py.
    """
    FIELDS: tl.constexpr = 32 // (BITS & -BITS)
    WORDS: tl.constexpr = BITS // (BITS & -BITS)
    b = tl.minimum(tl.arange(0, B), batch - 1)[:, None, None, None, None]
    k = tl.arange(0, K)[None, None, :, None, None]
    lane = tl.arange(0, 32)[None, None, None, :, None]
    unit = tl.arange(0, 4)[None, None, None, None, :]
    tile = tl.minimum(tl.program_id(0) * R + tl.arange(0, R), tiles - 1)[None, :, None, None, None]
    block, inside = tile // STACK, tile % STACK
    end = tl.minimum((tl.program_id(1) + 1) * runs_per_split, runs)
    words = section(layout, 256, tl.uint32)
    words += block * (runs * (RUN * WORDS * STACK * 128)) + inside * 128 + lane * 4 + unit
    groups = (columns + group_size - 1) // group_size
    steps = steps_section(layout, steps_at, STEP)
    total = tl.zeros((B, R, K, 32), tl.float32)
    for run in range(tl.program_id(1) * runs_per_split, end, K):
        # a warp without a run of its own repeats the last one, and its result is dropped
        mine = tl.minimum(run + k, end - 1)
        part = tl.zeros((B, R, K, 32, 4), tl.float32)
        zero = tl.zeros((B, 1, K, 1, 4), tl.float32)
        for c in tl.static_range(RUN):
            chunk = mine * RUN + c
            held = ()
            for n in tl.static_range(WORDS):
                held += (tl.load(words + (chunk * WORDS + n) * (STACK * 128)),)
            joint = chunk * (4 // JOIN) + unit // JOIN
            first = joint // JOINTS * group_size
            column = joint % JOINTS * (FIELDS * JOIN)
            left = tl.minimum(group_size, columns - first) - column
            if MASKS == 2:
                # otherwise all columns of a vector are there, or none of them
                left -= unit % JOIN
            column += first + unit % JOIN
            for i in tl.static_range(FIELDS):
                if MASKS == 0:
                    xi = tl.load(x + b * columns + column + i * JOIN).to(tl.float32)
                else:
                    at = x + b * columns + column + i * JOIN
                    xi = tl.load(at, mask=left > i * JOIN, other=0)
                    xi = xi.to(tl.float32)
                if FORM == 1:
                    step = tl.load(steps + column + i * JOIN, mask=left > i * JOIN, other=0)
                    xi *= step.to(tl.float32)
                value = raised(held, one, i, BITS)
                if EXACT:
                    part = tl.fma(value - zero_of(i, BITS, LOW), xi, part)
                else:
                    part = tl.fma(value, xi, part)
                    if JOIN < 4:
                        zero += xi * zero_of(i, BITS, LOW)
        if JOIN == 4:
            whole = tl.sum(part, 4)
            if not EXACT:
                whole -= zero_sum(x, mine, columns, batch, group_size, JOINTS, BITS, LOW, RUN, B, K)
            if FORM == 2:
                group = tl.reshape(mine * RUN // JOINTS, (1, 1, K, 1))
                at = (tl.reshape(block, (1, R, 1, 1)) * groups + group) * (32 * STACK)
                at += tl.reshape(lane, (1, 1, 1, 32)) * STACK + tl.reshape(inside, (1, R, 1, 1))
                whole *= tl.load(steps + at).to(tl.float32)
        else:
            part -= zero
            if FORM == 2:
                group = (mine * (4 // JOIN) + unit // JOIN) // JOINTS
                group = tl.minimum(group, groups - 1)
                at = ((block * groups + group) * 32 + lane) * STACK + inside
                part *= tl.load(steps + at).to(tl.float32)
            whole = tl.sum(part, 4)
        total += tl.where(tl.reshape(run + k < end, (1, 1, K, 1)), whole, 0)
    if FORM == 0:
        total *= tl.load(steps).to(tl.float32)
    total += outliers_few(
        x, layout, counts_at, starts_at, entries_at, columns, batch, tiles, splits, STRIPES, B, R, K
    )
    row = tl.program_id(0) * (R * 32) + tl.arange(0, R)[:, None] * 32 + tl.arange(0, 32)[None, :]
    there = row < rows
    result = tl.sum(total, 2)
    if BIAS:
        result += tl.load(bias + row, mask=there, other=0).to(tl.float32)[None]
    first = tl.arange(0, B)[:, None, None]
    if SPLIT:
        first += tl.program_id(1) * batch
    there = there[None] & (tl.arange(0, B)[:, None, None] < batch)
    tl.store(y + first * rows + row[None], result, mask=there)


@triton.jit
@no_type_check
def outliers_few(
    x,
    layout,
    counts_at,
    starts_at,
    entries_at,
    columns,
    batch,
    tiles,
    splits,
    STRIPES: tl.constexpr,
    B: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
):
    """Return the product with the outliers; programs and warps take turns at the slots."""
    b = tl.minimum(tl.arange(0, B), batch - 1)[:, None, None, None]
    tile = tl.minimum(tl.program_id(0) * R + tl.arange(0, R), tiles - 1)[None, :, None, None]
    k = tl.arange(0, K)[None, None, :, None]
    place = tl.arange(0, 32)[None, None, None, :] * 5 % 32
    total = tl.zeros((B, R, K, 32), tl.float32)
    for stripe in tl.static_range(STRIPES):
        count = section(layout, counts_at, tl.int32) + (stripe * tiles + tile) * 32 + place
        count = tl.load(count + k * 0)
        start = tl.load(section(layout, starts_at, tl.int32) + tile * STRIPES + stripe)
        entries = section(layout, entries_at, tl.uint32) + start * 32 + place
        for turn in range(tl.program_id(1) * K, tl.max(count), splits * K):
            there = turn + k < count
            entry = tl.load(entries + (turn + k) * 32, mask=there, other=0)
            value = (entry >> 16).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
            column = (entry & 0xFFFF).to(tl.int32) + stripe * 65536
            xi = tl.load(x + b * columns + column, mask=there, other=0).to(tl.float32)
            total = tl.fma(xi, value, total)
    return total


@triton.jit
@no_type_check
def zero_sum(
    x,
    mine,
    columns,
    batch,
    group_size,
    JOINTS: tl.constexpr,
    BITS: tl.constexpr,
    LOW: tl.constexpr,
    RUN: tl.constexpr,
    B: tl.constexpr,
    K: tl.constexpr,
):
    """Return Σ x · `zero_of` over a run, which is to be subtracted from every row's sum."""
    COLUMNS: tl.constexpr = RUN * 128 // (BITS & -BITS)
    b = tl.minimum(tl.arange(0, B), batch - 1)[:, None, None]
    joint = tl.reshape(mine, (1, K, 1)) * RUN
    column = tl.arange(0, COLUMNS)[None, None, :]
    inside = joint % JOINTS * (COLUMNS // RUN) + column
    first = joint // JOINTS * group_size
    there = inside < tl.minimum(group_size, columns - first)
    xs = tl.load(x + b * columns + first + inside, mask=there, other=0).to(tl.float32)
    total = tl.sum(xs * zeros_of(column, BITS, LOW), 2)
    return total[:, None, :, None]

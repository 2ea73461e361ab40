"""Triton kernel: nearest-plane rounding of at most 32 columns, one row of the weight a thread."""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def nearest_integer(x):
    """Round x half to even: adding 2^23 (2^52 in float64) leaves no bits for a fraction."""
    if x.dtype == tl.float64:
        limit = 4503599627370496.0
    else:
        limit = 8388608.0
    size = tl.abs(x)
    rounded = (size + limit) - limit
    rounded = tl.where(x < 0, -rounded, rounded)
    return tl.where(size < limit, rounded, x)


@triton.jit
@no_type_check
def quotient(a, b):
    """Return a / b, correctly rounded as IEEE 754 demands."""
    if a.dtype == tl.float64:
        result = a / b
    else:
        result = tl.div_rn(a, b)
    return result


@triton.jit
@no_type_check
def nearest_level(x, levels, count, LEVELS: tl.constexpr):
    """Return the nearest of `count` integers in ascending order, of two the lower, by bisection.

    - `LEVELS`: a power of two, at least `count`, at most 256.
    """
    below = tl.zeros(x.shape, tl.int32)  # how many middles between levels x is above
    for halved in tl.static_range(1, 9):
        if LEVELS >> halved > 0:
            probe = below + (LEVELS >> halved)
            inside = probe < count
            middle = tl.load(levels + probe - 1, mask=inside, other=0)
            middle = (middle + tl.load(levels + probe, mask=inside, other=0)) / 2
            below = tl.where(inside & (x > middle), probe, below)
    return tl.load(levels + below)


# numbers that differ from call to call: the kernel is compiled once for all of them
@triton.jit(do_not_specialize=["low", "high", "span", "levels"])
@no_type_check
def leaf(
    target,
    unit,
    best,
    error,
    code,
    step,
    table,
    at_row,
    at_column,
    outlier,
    is_outlier,
    low,
    high,
    span,
    levels,
    rows,
    n,
    first,
    end,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    STEP: tl.constexpr,
    PRICED: tl.constexpr,
    LEVELS: tl.constexpr,
    OUTLIERS: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Round columns first .. end - 1, at most COUNT, the last one first.

    It does what `leaf` in nearplane/lattice/nearest_plane.py does; if PRICED, what that of
    rate_aware.py does; if OUTLIERS, that of outliers.py.

    - `step`: the step of every element if STEP; else all steps are 1.
    - `table`, `at_row`, `at_column`, `outlier`, `is_outlier`: see Rounding in
      nearplane/kernels/gpu/nearest_plane.py; `table` has the thresholds if PRICED, and `levels`
      levels if LEVELS.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    k = tl.arange(0, COUNT)
    errors = tl.zeros((COUNT, ROWS), target.dtype.element_ty)
    for done in range(end - first):
        column = end - 1 - done
        at = column.to(tl.int64) * rows + row
        # errors of columns that are not rounded yet are zero
        pull = tl.load(unit + column.to(tl.int64) * n + first + k, mask=k < end - first, other=0)
        value = tl.load(best + at, mask=there, other=0) + tl.sum(pull[:, None] * errors, 0)
        best_value = value
        if STEP:
            size = tl.load(step + at, mask=there, other=1)
            value = quotient(value, size)
        if PRICED:
            below = tl.floor(value)
            # clipped before the conversion, since an int32 may not hold it
            place = tl.minimum(tl.maximum(below, -span - 1), span).to(tl.int32)
            place += tl.load(at_row + row, mask=there, other=0) + tl.load(at_column + column)
            above = value - below > tl.load(table + place, mask=there, other=0)
            nearest = tl.where(above, below + 1, below)
        elif LEVELS > 0:
            nearest = nearest_level(value, table, levels, LEVELS)
        else:
            unclipped = nearest_integer(value)
            nearest = unclipped
            if LOW:
                nearest = tl.maximum(nearest, tl.zeros_like(nearest) + low)
            if HIGH:
                nearest = tl.minimum(nearest, tl.zeros_like(nearest) + high)
        tl.store(code + at, nearest.to(tl.int32), mask=there)
        if STEP:
            nearest *= size
        if OUTLIERS:
            beyond = unclipped != tl.minimum(tl.maximum(unclipped, low), high)
            cut_off = tl.where(beyond, best_value - nearest, tl.zeros_like(nearest))
            cut_off = tl.minimum(tl.maximum(cut_off, -65504.0), 65504.0)
            # torch rounds float64 to float32 on the way, too
            cut_off = cut_off.to(tl.float32).to(tl.float16)
            tl.store(outlier + at, cut_off, mask=there)
            tl.store(is_outlier + at, beyond.to(tl.uint8), mask=there)
            nearest += cut_off.to(nearest.dtype)
        left = tl.load(target + at, mask=there, other=0) - nearest
        tl.store(error + at, left, mask=there)
        errors = tl.where((k == column - first)[:, None], left[None, :], errors)

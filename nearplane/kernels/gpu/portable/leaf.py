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
def leaf(
    target,
    unit,
    best,
    error,
    code,
    step,
    threshold,
    at_row,
    at_column,
    low,
    high,
    rows,
    n,
    first,
    end,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    STEP: tl.constexpr,
    SPAN: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Round columns first .. end - 1, at most COUNT, the last one first.

    It does what `leaf` in nearplane/lattice/nearest_plane.py does, or if SPAN >= 0, that of
    rate_aware.py.

    - `step`: the step of every element if STEP; else all steps are 1.
    - `threshold`, `at_row`, `at_column`: see Rounding in nearplane/kernels/gpu/nearest_plane.py.
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
        if STEP:
            size = tl.load(step + at, mask=there, other=1)
            value = quotient(value, size)
        if SPAN >= 0:
            below = tl.floor(value)
            # clipped before the conversion, since an int32 may not hold it
            place = tl.minimum(tl.maximum(below, -SPAN - 1), SPAN).to(tl.int32)
            place += tl.load(at_row + row, mask=there, other=0) + tl.load(at_column + column)
            above = value - below > tl.load(threshold + place, mask=there, other=0)
            nearest = tl.where(above, below + 1, below)
        else:
            nearest = nearest_integer(value)
            if LOW:
                # a limit of 1 is a constant to Triton, which has no type
                nearest = tl.maximum(nearest, tl.zeros_like(nearest) + low)
            if HIGH:
                nearest = tl.minimum(nearest, tl.zeros_like(nearest) + high)
        tl.store(code + at, nearest.to(tl.int32), mask=there)
        if STEP:
            nearest *= size
        left = tl.load(target + at, mask=there, other=0) - nearest
        tl.store(error + at, left, mask=there)
        errors = tl.where((k == column - first)[:, None], left[None, :], errors)

"""Triton kernel: a beam search over at most 32 columns, one path of a row a thread."""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def ahead(others, of, earlier):
    """Return how many of a row's other costs come before each cost; of equal ones, the earlier."""
    first, second = others[:, None, :], of[:, :, None]
    before = (first < second) | ((first == second) & earlier[None, :, :])
    return tl.sum(before.to(tl.int32), 2)


@triton.jit
@no_type_check
def one_of(low, high, is_low, is_high):
    """Return the one number of each place: of `low` where is_low, of `high` where is_high."""
    found = tl.where(is_high, high[:, None, :], tl.zeros_like(high)[:, None, :])
    return tl.sum(tl.where(is_low, low[:, None, :], found), 2)


@triton.jit(do_not_specialize=["span"])
@no_type_check
def search(
    target,
    unit,
    best,
    error,
    code,
    cost,
    parent,
    price,
    column_cost,
    at_row,
    at_column,
    span,
    rows,
    n,
    first,
    end,
    PATHS: tl.constexpr,
    WIDE: tl.constexpr,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Round columns first .. end - 1 of every path, at most COUNT, the last one first.

    It does what `leaf` in nearplane/lattice/search.py does. Of equal costs that of the earlier path
    is kept, and then that of the lower neighbour.

    - `price`: what integers −span .. span cost, times the slope, by context; at_row[i] +
      at_column[j] + the integer is an index into it.
    - `PATHS`: paths of a row; `WIDE`: the power of two that holds them.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    path = tl.arange(0, WIDE)
    k = tl.arange(0, COUNT)
    there = (row < rows)[:, None] & (path < PATHS)[None, :]
    on_path = row.to(tl.int64)[:, None] * PATHS + path[None, :]
    earlier = path[None, :] < path[:, None]  # of the others, along the last axis
    not_later = path[None, :] <= path[:, None]
    costs = tl.load(cost + on_path, mask=there, other=float("inf"))
    from_path = tl.zeros((ROWS, WIDE), tl.int32) + path[None, :]
    errors = tl.zeros((COUNT, ROWS, WIDE), target.dtype.element_ty)
    codes = tl.zeros((COUNT, ROWS, WIDE), tl.int32)
    for done in range(end - first):
        column = end - 1 - done
        at = column.to(tl.int64) * rows + row
        # errors of columns that are not rounded yet are zero
        pull = tl.load(unit + column.to(tl.int64) * n + first + k, mask=k < end - first, other=0)
        value = tl.load(best + at[:, None] * PATHS + from_path, mask=there, other=0)
        value += tl.sum(pull[:, None, None] * errors, 0)
        below = tl.floor(value)
        context = tl.load(at_row + row, mask=row < rows, other=0) + tl.load(at_column + column)
        # clipped before the conversion, since an int32 may not hold it
        place = tl.minimum(tl.maximum(below, -span), span).to(tl.int32)
        added = tl.load(price + context[:, None] + place, mask=there, other=0)
        off = value - below
        weight = tl.load(column_cost + column).to(tl.float64)
        low = costs + weight * (off * off + added).to(tl.float64)
        upper = below + 1
        place = tl.minimum(tl.maximum(upper, -span), span).to(tl.int32)
        added = tl.load(price + context[:, None] + place, mask=there, other=0)
        off = value - upper
        high = costs + weight * (off * off + added).to(tl.float64)
        # candidate 2 k + b continues path k by its lower neighbour or, b = 1, by its upper one
        low_rank = ahead(low, low, earlier) + ahead(high, low, earlier)
        high_rank = ahead(low, high, not_later) + ahead(high, high, earlier)
        is_low = low_rank[:, None, :] == path[None, :, None]
        is_high = high_rank[:, None, :] == path[None, :, None]
        costs = one_of(low, high, is_low, is_high)
        # there is nothing on paths beyond PATHS
        costs = tl.where((path < PATHS)[None, :], costs, float("inf"))
        number = tl.zeros((ROWS, WIDE), tl.int32) + 2 * path[None, :]
        chosen = one_of(number, number + 1, is_low, is_high)
        # ranks of costs that are no numbers may be anything
        continued = tl.minimum(chosen >> 1, PATHS - 1)
        rounded = tl.gather(below, continued, 1) + (chosen & 1)
        from_path = tl.gather(from_path, continued, 1)
        for_all = tl.broadcast_to(continued[None, :, :], (COUNT, ROWS, WIDE))
        errors = tl.gather(errors, for_all, 2)
        codes = tl.gather(codes, for_all, 2)
        left = tl.load(target + at, mask=row < rows, other=0)[:, None] - rounded
        now = (k == column - first)[:, None, None]
        errors = tl.where(now, left[None, :, :], errors)
        codes = tl.where(now, rounded.to(tl.int32)[None, :, :], codes)
    whole = (first + k).to(tl.int64)[:, None, None] * rows * PATHS + on_path[None, :, :]
    inside = (k < end - first)[:, None, None] & there[None, :, :]
    tl.store(error + whole, errors, mask=inside)
    tl.store(code + whole, codes, mask=inside)
    tl.store(cost + on_path, costs, mask=there)
    tl.store(parent + on_path, from_path.to(tl.int64), mask=there)

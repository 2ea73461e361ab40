"""Work on rows that are independent of each other, so that it can be shared out."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from nearplane.op import Op

# rows rounded at a time: fewer leave caches less full, and who shares rows out can cut between them
TILE = 512
PIECE = 2  # grains that are worked on at a time: what is made on the way need not fit as a whole

Work = Callable[[slice], tuple[Tensor, ...]]
RowsOf = Callable[[slice], Tensor]  # some rows of a matrix that need not be there as a whole


@Op
def in_parts(work: Work, count: int, grain: int = TILE) -> list[tuple[Tensor, ...]]:
    """Return what `work` makes of consecutive parts of `count` things, in their order.

    Here there is one part. Where several processes share the things out, each works on one and
    all are given the results; so the caller joins or adds them up in a way that comes to the
    same bits for any cut.

    - `grain`: cuts are multiples of it, and no part is smaller unless there are fewer things.
    """
    return [work(slice(0, count))]


def by_rows(work: Work, rows: int, grain: int = TILE) -> tuple[Tensor, ...]:
    """Return work(all rows), whose results have a row for each of them that depends on it alone."""

    def in_pieces(part: slice) -> tuple[Tensor, ...]:
        return joined([work(piece) for piece in pieces(part, grain)])

    return joined(in_parts(in_pieces, rows, grain))


def joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return the rows of all parts."""
    return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))


def pieces(part: slice, grain: int) -> list[slice]:
    """Return PIECE grains after the other; none is smaller than a grain unless all are fewer."""
    ends = list(range(part.start + PIECE * grain, part.stop - grain + 1, PIECE * grain))
    return [slice(*ends_of) for ends_of in pairwise([part.start, *ends, part.stop])]


def starts_of_parts(count: int, grain: int, parts: int) -> list[int]:
    """Return where each of so many parts begins, and the end: whole grains each.

    The short grain at the end goes to the one before: a product of few rows sums in another
    order than one of many, and the same bits are promised.
    """
    grains = max(count // grain, 1)
    return [grains * part // parts * grain for part in range(parts)] + [count]


def cached_rows(of: Callable[[slice], Any], count: int) -> Callable[[slice], Any]:
    """Return the same function, which remembers the rows of the slices it was asked for last.

    - `count`: the rows of the matrix. So many rows are remembered at most, the latest slices; the
      slices of one sweep over a matrix are remembered for the next one.
    """
    made: OrderedDict[tuple[int, int, int], Any] = OrderedDict()

    def rows_of(rows: slice) -> Any:
        key = rows.start or 0, count if rows.stop is None else rows.stop, rows.step or 1
        if key not in made:
            made[key] = of(rows)
        made.move_to_end(key)
        while len(made) > 1 and sum(map(len, made.values())) > count:
            made.popitem(last=False)
        return made[key]

    return rows_of


def some_rows(of: Tensor, rows: slice) -> Tensor:
    """Return some rows of a matrix; of one that has a single row for all of them, this one."""
    return of[rows] if len(of) > 1 else of

"""Compute independent rows of a matrix in parts, which several processes can share."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from nearplane.op import Op

# rows rounded at a time; processes share rows in multiples of it
TILE = 512
PIECE = 2  # grains computed at a time, which bounds the memory of intermediate results
# numbers of a matrix that an accelerator sweeps over at a time: 256 MiB in float32
AT_ONCE = 1 << 26

Work = Callable[[slice], tuple[Tensor, ...]]
RowsOf = Callable[[slice], Tensor]  # returns rows of a matrix that need not exist as a whole


@Op
def in_parts(work: Work, count: int, grain: int = TILE) -> list[tuple[Tensor, ...]]:
    """Return work(part) for consecutive slices `part` that cover 0 .. count, in their order.

    This reference has one part. Inside `Ranks.sharing_rows` every process computes one part and
    receives the results of all. The caller must join or add the results so that they are equal
    bit by bit for any division into parts.

    - `count`: rows, or other items, that are divided.
    - `grain`: parts begin at multiples of it, and none is smaller unless `count` is.
    """
    return [work(slice(0, count))]


def by_rows(
    work: Work, rows: int, grain: int = TILE, at_once: int | None = None
) -> tuple[Tensor, ...]:
    """Return work(slice(0, rows)), computed in pieces of rows.

    - `work`: returns tensors whose row i depends on row i of the slice alone.
    - `at_once`: rows of a piece, a multiple of `grain` (`rows_at_once`); None for PIECE grains.
    """

    def in_pieces(part: slice) -> tuple[Tensor, ...]:
        return joined([work(piece) for piece in pieces(part, grain, at_once)])

    return joined(in_parts(in_pieces, rows, grain))


def joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return the results of all parts, concatenated along their rows."""
    return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))


def pieces(part: slice, grain: int, at_once: int | None = None) -> list[slice]:
    """Cut a slice into slices of `at_once` rows, or of PIECE grains.

    The last has a grain more or up to as many less; fewer than a grain if all have.
    """
    size = at_once or PIECE * grain
    ends = list(range(part.start + size, part.stop - grain + 1, size))
    return [slice(*ends_of) for ends_of in pairwise([part.start, *ends, part.stop])]


def rows_at_once(columns: int, device: torch.device) -> int:
    """Return how many rows of a matrix to work on at a time, for many small operations on each.

    On a CPU they are those that its caches hold. An accelerator takes longer to start an operation
    than for what it does to so few rows: there, as many as AT_ONCE numbers have.
    """
    tiles = PIECE if device.type == "cpu" else max(PIECE, AT_ONCE // max(columns * TILE, 1))
    return tiles * TILE


def starts_of_parts(count: int, grain: int, parts: int) -> list[int]:
    """Return where each of `parts` parts begins, a multiple of `grain`, and then `count`.

    A remainder smaller than a grain belongs to the last grain: a product of few rows may sum in
    another order than one of many, and results must not depend on the number of parts.
    """
    grains = max(count // grain, 1)
    return [grains * part // parts * grain for part in range(parts)] + [count]


def cached_rows(of: Callable[[slice], Any], count: int) -> Callable[[slice], Any]:
    """Return `of` with a cache of its latest results.

    - `of`: returns the rows of a slice.
    - `count`: the rows of the matrix, and the most rows that the cache holds, so that a sweep over
      the matrix finds those of the sweep before it.
    """
    cache: OrderedDict[tuple[int, int, int], Any] = OrderedDict()

    def rows_of(rows: slice) -> Any:
        key = rows.start or 0, count if rows.stop is None else rows.stop, rows.step or 1
        if key not in cache:
            cache[key] = of(rows)
        cache.move_to_end(key)
        while len(cache) > 1 and sum(map(len, cache.values())) > count:
            cache.popitem(last=False)
        return cache[key]

    return rows_of


def some_rows(of: Tensor, rows: slice) -> Tensor:
    """Return of[rows]; or `of` itself if it has a single row, which stands for every row."""
    return of[rows] if len(of) > 1 else of

"""Which integers share a prefix code: rows and columns of like size, sorted and cut into fields."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int32, Int64
from torch import Tensor

from nearplane.kernels.gpu.cuda.sections import ROWS, SHELF
from nearplane.kernels.gpu.cuda.tables import Table, best_table

# (window, tables that rows next to each other may have) and the bits that are worth it: tables take
# 2^(window + 7) bytes each of shared memory, windows above 6 bits 16 % more instructions
WORTH = {(6, 1): 1.0, (6, 2): 1.02, (7, 1): 1.03, (6, 4): 1.05, (7, 2): 1.06, (8, 1): 1.06}
CLASSES = (1, 2, 4, 8, 16, 32)
FARTHEST = 255  # integers beyond ±this are counted as this
ROUNDS = 4
ORDER_BITS = 16  # what a sorted row or column costs


@dataclass(frozen=True)
class Plan:
    """How a matrix is coded.

    - `rows`, `columns`: the order in which they are taken; None: as they are.
    - `tables`: all codes; `table`: which one each field has, (shelves, fields).
    - `bits`: of codes, escapes, tables and orders.
    - `fields`: tables that a shelf may have; fewer where there are fewer tiles.
    """

    window: int
    rows: Int64[Tensor, " rows"] | None
    columns: Int64[Tensor, " columns"] | None
    tables: list[Table]
    table: Int64[np.ndarray, "shelves fields"]
    bits: int
    fields: int


def plan(code: Int32[Tensor, "rows columns"], tiles: int, tile_columns: int) -> Plan | None:
    """Return the cheapest way to code a matrix; None where no code is short enough.

    - `tiles`, `tile_columns`: of a row block.
    """
    size = code.abs().float()
    rows, columns = torch.argsort(size.mean(1)), torch.argsort(size.mean(0))
    found = [each for each in (_plans(code, None, None, tiles, tile_columns)) if each]
    # two bytes hold a place
    if 1 < min(code.shape) and max(code.shape) <= 1 << 16:
        found += [p for p in _plans(code, rows, columns, tiles, tile_columns) if p]
    return min(found, key=_price, default=None)


def _price(plan: Plan) -> float:
    return plan.bits * WORTH[plan.window, plan.fields]


def _plans(
    code: Tensor, rows: Tensor | None, columns: Tensor | None, tiles: int, tile_columns: int
) -> list[Plan | None]:
    """Return a plan for each window, in one order of rows and columns."""
    taken = code if rows is None or columns is None else code[rows][:, columns]
    moved = 0 if rows is None else ORDER_BITS * sum(code.shape)
    made: list[Plan | None] = []
    for window, most in WORTH:
        fields = min(most, tiles)
        counts = _counts(taken, fields, -(-tiles // fields) * tile_columns)
        best = None
        for classes in CLASSES:
            if classes > counts.shape[0] * counts.shape[1]:
                break
            tried = _tables(counts, classes, window)
            if tried is None:
                break
            tables, table, bits = tried
            if best is not None and bits + moved >= best.bits:
                break
            best = Plan(window, rows, columns, tables, table, bits + moved, most)
        made.append(best)
    return made


def _counts(code: Tensor, fields: int, field_columns: int) -> Int64[np.ndarray, "shelves fields n"]:
    """Return how often each integer -FARTHEST .. FARTHEST is in every field."""
    shelves, symbols = -(-code.shape[0] // (ROWS * SHELF)), 2 * FARTHEST + 1
    shelf = torch.arange(code.shape[0], device=code.device) // (ROWS * SHELF)
    field = torch.arange(code.shape[1], device=code.device) // field_columns
    place = (shelf[:, None] * fields + field) * symbols + code.clamp(-FARTHEST, FARTHEST) + FARTHEST
    counts = torch.bincount(place.flatten(), minlength=shelves * fields * symbols)
    return counts.view(shelves, fields, symbols).cpu().numpy()


def _tables(
    counts: np.ndarray, classes: int, window: int
) -> tuple[list[Table], Int64[np.ndarray, "shelves fields"], int] | None:
    """Return tables, which of them each field has, and all bits."""
    whole = counts.reshape(-1, counts.shape[2])
    class_of = _cluster(whole.astype(np.float64), classes)
    used, class_of = np.unique(class_of, return_inverse=True)
    tables = [best_table(-FARTHEST, whole[class_of == c].sum(0), window) for c in range(len(used))]
    if any(table is None for table in tables):
        return None
    bits = sum(table.bits for table in tables) + len(tables) * 32 * ((1 << window) + 2)
    return tables, class_of.reshape(counts.shape[:2]), bits


def _cluster(
    counts: Float64[np.ndarray, "units symbols"], classes: int
) -> Int64[np.ndarray, " units"]:
    """Return a class of each histogram, so that a class's own entropy code is short for it."""
    reach = np.abs(np.arange(counts.shape[1]) - counts.shape[1] // 2)
    size = counts @ reach / np.maximum(counts.sum(1), 1)
    class_of = np.argsort(np.argsort(size, kind="stable")) * classes // len(counts)
    for _ in range(ROUNDS if classes > 1 else 0):
        sums = np.stack([counts[class_of == c].sum(0) for c in range(classes)]) + 0.1
        length = -np.log2(sums / sums.sum(1, keepdims=True))
        class_of = (counts @ length.T).argmin(1)
    return class_of

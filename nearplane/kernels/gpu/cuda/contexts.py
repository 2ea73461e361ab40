"""Choosing which integers of a weight share a prefix code (a Huffman code of limited length).

Rows and columns may be sorted by the mean magnitude of their integers. A row group (8 row blocks of
16 rows) times a range of columns is a field; each field uses one code table, and fields whose
integers are alike share it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int32, Int64
from torch import Tensor

from nearplane.kernels.gpu.cuda.sections import ROW_GROUP, ROWS
from nearplane.kernels.gpu.cuda.tables import Table, best_table

# (window, most fields of a row group) -> by what the bits are multiplied in a comparison: a table
# takes 2^(window + 7) bytes of shared memory, and windows above 6 bits cost 16 % more instructions
COST_FACTORS = {(6, 1): 1.0, (6, 2): 1.02, (7, 1): 1.03, (6, 4): 1.05, (7, 2): 1.06, (8, 1): 1.06}
CLASSES = (1, 2, 4, 8, 16, 32)  # numbers of code tables that are tried
FARTHEST = 255  # integers are clipped to ±FARTHEST before they are counted
ROUNDS = 4  # of k-means
ORDER_BITS = 16  # bits that store where a sorted row or column was


@dataclass(frozen=True)
class Plan:
    """How a matrix is coded.

    - `window`: the longest code word in bits.
    - `rows`, `columns`: permutations that sort rows and columns; None: they are not sorted.
    - `tables`: all code tables; `table`: which of them each field uses.
    - `bits`: size of code words, escapes, tables and permutations.
    - `fields`: the most fields of a row group; there are fewer if there are fewer tiles.
    """

    window: int
    rows: Int64[Tensor, " rows"] | None
    columns: Int64[Tensor, " columns"] | None
    tables: list[Table]
    table: Int64[np.ndarray, "row_groups fields"]
    bits: int
    fields: int


def plan(code: Int32[Tensor, "rows columns"], tiles: int, tile_columns: int) -> Plan | None:
    """Return the cheapest way to code a matrix; None if no code is short enough.

    - `tiles`, `tile_columns`: tiles of a row block, and columns of a tile.
    """
    size = code.abs().float()
    rows, columns = torch.argsort(size.mean(1)), torch.argsort(size.mean(0))
    found = [each for each in (_plans(code, None, None, tiles, tile_columns)) if each]
    # sorting needs positions that two bytes can hold
    if 1 < min(code.shape) and max(code.shape) <= 1 << 16:
        found += [p for p in _plans(code, rows, columns, tiles, tile_columns) if p]
    return min(found, key=_price, default=None)


def _price(plan: Plan) -> float:
    return plan.bits * COST_FACTORS[plan.window, plan.fields]


def _plans(
    code: Tensor, rows: Tensor | None, columns: Tensor | None, tiles: int, tile_columns: int
) -> list[Plan | None]:
    """Return the best plan for each entry of COST_FACTORS, for rows and columns in this order."""
    taken = code if rows is None or columns is None else code[rows][:, columns]
    moved = 0 if rows is None else ORDER_BITS * sum(code.shape)
    made: list[Plan | None] = []
    for window, most in COST_FACTORS:
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


def _counts(
    code: Tensor, fields: int, field_columns: int
) -> Int64[np.ndarray, "row_groups fields n"]:
    """Return how often each integer −FARTHEST .. FARTHEST occurs in every field."""
    row_groups, symbols = -(-code.shape[0] // (ROWS * ROW_GROUP)), 2 * FARTHEST + 1
    row_group = torch.arange(code.shape[0], device=code.device) // (ROWS * ROW_GROUP)
    field = torch.arange(code.shape[1], device=code.device) // field_columns
    place = (
        (row_group[:, None] * fields + field) * symbols + code.clamp(-FARTHEST, FARTHEST) + FARTHEST
    )
    counts = torch.bincount(place.flatten(), minlength=row_groups * fields * symbols)
    return counts.view(row_groups, fields, symbols).cpu().numpy()


def _tables(
    counts: np.ndarray, classes: int, window: int
) -> tuple[list[Table], Int64[np.ndarray, "row_groups fields"], int] | None:
    """Return code tables, which of them each field uses, and the bits of tables and integers."""
    whole = counts.reshape(-1, counts.shape[2])
    class_of = _cluster(whole.astype(np.float64), classes)
    used, class_of = np.unique(class_of, return_inverse=True)
    found = [best_table(-FARTHEST, whole[class_of == c].sum(0), window) for c in range(len(used))]
    tables = [table for table in found if table is not None]
    if len(tables) < len(found):
        return None
    bits = sum(table.bits for table in tables) + len(tables) * 32 * ((1 << window) + 2)
    return tables, class_of.reshape(counts.shape[:2]), bits


def _cluster(
    counts: Float64[np.ndarray, "units symbols"], classes: int
) -> Int64[np.ndarray, " units"]:
    """Assign every histogram to a class by k-means.

    The distance is the code length of the histogram under the distribution of the class.
    """
    reach = np.abs(np.arange(counts.shape[1]) - counts.shape[1] // 2)
    size = counts @ reach / np.maximum(counts.sum(1), 1)
    class_of = np.argsort(np.argsort(size, kind="stable")) * classes // len(counts)
    for _ in range(ROUNDS if classes > 1 else 0):
        sums = np.stack([counts[class_of == c].sum(0) for c in range(classes)]) + 0.1
        length = -np.log2(sums / sums.sum(1, keepdims=True))
        class_of = (counts @ length.T).argmin(1)
    return class_of

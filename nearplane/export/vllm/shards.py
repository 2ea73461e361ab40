"""Which rows and columns of which records one tensor-parallel process of vLLM holds.

| theirs | ours |
|---|---|
| output_partition_sizes | `held_rows`: rows of each part of a layer that this process holds |
| input_size_per_partition | the number of columns that it holds |
| tp_rank, tp_size | `rank` and `ranks` of `TensorParallelRank` |
| shard | `TensorParallelShard`; the files of a checkpoint are called shards, too |
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from nearplane.codes.cut import cut
from nearplane.types import NearplaneError


@dataclass(frozen=True)
class LayerEntry:
    """What config.json says of one compressed layer; `bytes` is the length of its record."""

    name: str
    bytes: int
    rows: int
    columns: int

    @classmethod
    def from_json(cls, name: str, entry: dict[str, Any]) -> "LayerEntry":
        return cls(name, entry["bytes"], entry["rows"], entry["columns"])

    def for_json(self) -> dict[str, int]:
        return {"bytes": self.bytes, "rows": self.rows, "columns": self.columns}


@dataclass(frozen=True)
class TensorParallelShard:
    """The rows and columns that one process holds of one record of a layer.

    - `part`: the index of the record, where vLLM fuses several layers into one.
    """

    part: int
    rows: range
    columns: range

    def cut(self, record: UInt8[Tensor, " bytes"]) -> UInt8[Tensor, " cut_bytes"]:
        """Return the record of these rows and columns of a record's matrix."""
        return cut(record, self.rows, self.columns)


@dataclass(frozen=True)
class TensorParallelRank:
    """One of the `ranks` processes that share the layers of a model."""

    rank: int
    ranks: int

    def rows(self, whole: int, held: int, name: str) -> range:
        """Return which rows this process holds: `held` of `whole`.

        Where `whole` / `held` is below `ranks`, as with few key-value heads, neighbouring processes
        hold the same rows. NearplaneError if the numbers do not divide; it names the layer `name`.
        """
        shards = whole // held if held else 0
        if not shards or whole % held or self.ranks % shards:
            raise NearplaneError(
                f"{name} has {whole} rows, of which vLLM puts {held} on each of {self.ranks} "
                "processes: nearplane cannot cut it that way"
            )
        return _share(self.rank // (self.ranks // shards), held)

    def columns(self, whole: int, held: int) -> range:
        """Return which columns this process holds: all, or `held` of `whole`."""
        return range(whole) if held == whole else _share(self.rank, held)


def shards_of(
    parts: list[LayerEntry],
    columns: range,
    held_rows: list[int],
    whole_rows: list[int],
    rank: TensorParallelRank,
) -> list[TensorParallelShard]:
    """Return the shards whose outputs, concatenated, are the outputs of a layer of vLLM.

    NearplaneError if vLLM's parts do not fit the records.

    - `parts`: the records of the layer, in the order of its outputs.
    - `columns`: the columns that this process holds of all of them.
    - `held_rows`: rows of each part that this process holds.
    - `whole_rows`: rows of each part in all; only used where one record holds several parts.
    """
    if len(parts) == len(held_rows):
        rows = [rank.rows(p.rows, n, p.name) for p, n in zip(parts, held_rows, strict=True)]
        return [TensorParallelShard(part, r, columns) for part, r in enumerate(rows)]
    if len(parts) != 1 or sum(whole_rows) != parts[0].rows:
        names = " and ".join(part.name for part in parts)
        raise NearplaneError(
            f"vLLM has a layer of {len(held_rows)} parts, with {whole_rows} rows in all, where "
            f"{names} has {sum(part.rows for part in parts)}: nearplane cannot tell them apart"
        )
    return _shards_of_one_record(parts[0], columns, held_rows, whole_rows, rank)


def _shards_of_one_record(
    entry: LayerEntry,
    columns: range,
    held_rows: list[int],
    whole_rows: list[int],
    rank: TensorParallelRank,
) -> list[TensorParallelShard]:
    """Return the shards of a layer whose parts are fused in the checkpoint, as GPT-2's are."""
    if held_rows == whole_rows:
        return [TensorParallelShard(0, range(entry.rows), columns)]
    shards, first = [], 0
    for whole, held in zip(whole_rows, held_rows, strict=True):
        part = rank.rows(whole, held, entry.name)
        rows = range(first + part.start, first + part.stop)
        shards.append(TensorParallelShard(0, rows, columns))
        first += whole
    return shards


def _share(number: int, size: int) -> range:
    """Return range `number` of consecutive ranges of `size` integers each."""
    return range(number * size, (number + 1) * size)

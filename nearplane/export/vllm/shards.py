"""Which rows and columns of which record one process of vLLM multiplies by.

| theirs | ours |
|---|---|
| output_partition_sizes | rows that this process has of each part of a layer |
| input_size_per_partition | columns that it has |
| tp_rank, tp_size | `rank` and `ranks` |
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from nearplane.codes.cut import cut
from nearplane.types import NearplaneError


@dataclass(frozen=True)
class Stored:
    """A compressed layer as config.json announces it: enough to allocate its record."""

    name: str
    bytes: int
    rows: int
    columns: int

    @classmethod
    def from_entry(cls, name: str, entry: dict[str, Any]) -> "Stored":
        return cls(name, entry["bytes"], entry["rows"], entry["columns"])

    @property
    def entry(self) -> dict[str, int]:
        return {"bytes": self.bytes, "rows": self.rows, "columns": self.columns}


@dataclass(frozen=True)
class Shard:
    """A block of the record number `part` of a layer."""

    part: int
    rows: range
    columns: range

    def cut(self, record: UInt8[Tensor, " bytes"]) -> UInt8[Tensor, " cut_bytes"]:
        """Return the block's own record."""
        return cut(record, self.rows, self.columns)


@dataclass(frozen=True)
class Place:
    """One process among those that share a layer."""

    rank: int
    ranks: int

    def rows(self, whole: int, held: int, name: str) -> range:
        """Return which `held` of `whole` rows are here.

        Where there are fewer shards than processes, as with few key-value heads, neighbours hold
        the same one.
        """
        shards = whole // held if held else 0
        if not shards or whole % held or self.ranks % shards:
            raise NearplaneError(
                f"{name} has {whole} rows, of which vLLM puts {held} on each of {self.ranks} "
                "processes: nearplane cannot cut it that way"
            )
        return _share(self.rank // (self.ranks // shards), held)

    def columns(self, whole: int, held: int) -> range:
        """Return which `held` of `whole` columns are here."""
        return range(whole) if held == whole else _share(self.rank, held)


def shards_of(
    parts: list[Stored], columns: range, held_rows: list[int], whole_rows: list[int], place: Place
) -> list[Shard]:
    """Return the blocks whose outputs, one after the other, are a layer's outputs.

    - `held_rows`: rows of each part that this process has.
    - `whole_rows`: rows of each part in all; only used where one record holds several parts.
    """
    if len(parts) == len(held_rows):
        rows = [place.rows(p.rows, n, p.name) for p, n in zip(parts, held_rows, strict=True)]
        return [Shard(number, r, columns) for number, r in enumerate(rows)]
    if len(parts) != 1 or sum(whole_rows) != parts[0].rows:
        names = " and ".join(part.name for part in parts)
        raise NearplaneError(
            f"vLLM has a layer of {len(held_rows)} parts, with {whole_rows} rows in all, where "
            f"{names} has {sum(part.rows for part in parts)}: nearplane cannot tell them apart"
        )
    return _of_one_record(parts[0], columns, held_rows, whole_rows, place)


def _of_one_record(
    stored: Stored, columns: range, held_rows: list[int], whole_rows: list[int], place: Place
) -> list[Shard]:
    """Return the blocks of a layer whose parts were fused before they were compressed."""
    if held_rows == whole_rows:
        return [Shard(0, range(stored.rows), columns)]
    shards, above = [], 0
    for whole, held in zip(whole_rows, held_rows, strict=True):
        rows = place.rows(whole, held, stored.name)
        shards.append(Shard(0, range(above + rows.start, above + rows.stop), columns))
        above += whole
    return shards


def _share(number: int, size: int) -> range:
    return range(number * size, (number + 1) * size)

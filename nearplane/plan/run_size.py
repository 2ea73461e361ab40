"""How large a run is: its calibration and its processes, and how these divide the work."""

from dataclasses import dataclass

from nearplane.rows import TILE, starts_of_parts
from nearplane.types import NearplaneError
from nearplane.walk.calibration import check_size


@dataclass(frozen=True)
class RunSize:
    """The calibration of a run, and by how many processes it is done.

    Raises NearplaneError if there are fewer sequences than processes, or none of either.
    """

    sequences: int
    length: int
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise NearplaneError(f"--ranks must be at least 1, not {self.ranks}")
        check_size(self.sequences, self.length)
        if self.sequences < self.ranks:
            raise NearplaneError(
                f"{self.sequences} sequences cannot be shared by {self.ranks} processes: give more "
                "calibration or start fewer"
            )

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    def of_sequences(self) -> list[float]:
        """Return each process's share of the calibration, cut as `Ranks.share` cuts it."""
        return [len(range(r, self.sequences, self.ranks)) / self.sequences for r in self.each]

    def of_rows(self, count: int, grain: int = TILE) -> list[float]:
        """Return each process's share of `count` rows or weights, as `Ranks._starts` cuts them."""
        starts = starts_of_parts(count, grain, self.ranks)
        return [(starts[rank + 1] - starts[rank]) / count for rank in self.each]

    @property
    def each(self) -> range:
        return range(self.ranks)

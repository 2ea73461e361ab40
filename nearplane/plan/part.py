"""One kind of work in a run: how much of it, what decides how long it takes, and who does it."""

from dataclasses import dataclass
from typing import NamedTuple

from nearplane.plan.throughput import Throughput


class OffloadCost(NamedTuple):
    """What a run repeats, or moves through the disk, because of its offload.

    - `again`: the share of the batches whose forward passes are repeated for every stage.
    - `by_blocks`: whether weights are read again whenever their block is needed.
    - `spilled`: whether hidden states go through a file between blocks.
    """

    again: float = 0.0
    by_blocks: bool = False
    spilled: bool = False
    reads: bool = False
    writes: bool = False


FIRST = 1.0  # `Part.share` of work that the first process does while the others wait
PLAIN = OffloadCost()


@dataclass(frozen=True)
class Part:
    """Work of one kind.

    - `group`: the line of the plan that it is counted in.
    - `rate`: the field of Throughput that decides how long it takes; `amount` is in its unit.
    - `share`: the largest share of one process, for which the others wait; None where every
      process does all of it.
    - `beside`: whether it is done beside the work on blocks, and only takes time of its own where
      it takes longer than that.
    """

    group: str
    rate: str
    amount: int | float
    share: int | float | None = None
    beside: bool = False

    def seconds(self, rates: Throughput) -> int | float:
        """Return the seconds until the last process has finished it."""
        share = 1.0 if self.share is None else self.share
        return self.amount * share / getattr(rates, self.rate)

    def spent(self, rates: Throughput, ranks: int) -> int | float:
        """Return the seconds of all processes together."""
        times = ranks if self.share is None else 1
        return self.amount * times / getattr(rates, self.rate)

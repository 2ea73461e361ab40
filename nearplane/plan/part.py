"""One kind of work in a run: how much of it, what decides how long it takes, and who does it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from nearplane.plan.throughput import Throughput


class OffloadCost(NamedTuple):
    """What a run repeats, or moves through the disk, because of its offload.

    - `again`: the share of the batches whose forward passes are repeated for every stage.
    - `by_blocks`: whether weights are read again whenever their block is needed.
    - `spilled`: whether hidden states go through a file between blocks.
    - `on_host`: whether they go through the memory of an accelerator's host.
    """

    again: float = 0.0
    by_blocks: bool = False
    spilled: bool = False
    on_host: bool = False
    reads: bool = False
    writes: bool = False


FIRST = 1.0  # `Part.share` of work that the first process does while the others wait
PLAIN = OffloadCost()


@dataclass(frozen=True)
class Part:
    """Work of one kind, and what else of the machine the same operators keep busy.

    - `group`: the line of the plan that it is counted in. `name`: that of the table of costs.
    - `rate`: the field of Throughput that decides how long it takes; `amount` is in its unit.
    - `share`: the largest share of one process, for which the others wait; None where every
      process does all of it.
    - `beside`: fields of Throughput -> amounts that are used up meanwhile, such as bytes of memory
      beside flops. What takes longest bounds the part.
    - `overlapped`: whether it is done beside the work on blocks, and only takes time of its own
      where it takes longer than that.
    """

    group: str
    rate: str
    amount: int | float
    share: int | float | None = None
    name: str = ""
    beside: Mapping[str, int | float] = field(default_factory=dict)
    overlapped: bool = False

    @property
    def line(self) -> str:
        """The line of the table of costs that it is counted in."""
        return self.name or self.group

    @property
    def amounts(self) -> dict[str, int | float]:
        """Field of Throughput -> how much of it one process uses up, for which the others wait."""
        share = 1.0 if self.share is None else self.share
        whole = {self.rate: self.amount} | dict(self.beside)
        return {rate: amount * share for rate, amount in whole.items()}

    def times(self, rates: Throughput) -> dict[str, int | float]:
        """Field of Throughput -> the seconds that it alone would take."""
        return {rate: amount / getattr(rates, rate) for rate, amount in self.amounts.items()}

    def seconds(self, rates: Throughput) -> int | float:
        """Return the seconds until the last process has finished it."""
        return max(self.times(rates).values())

    def bound(self, rates: Throughput) -> str:
        """Return the field of Throughput that takes longest."""
        times = self.times(rates)
        return max(times, key=lambda rate: times[rate])

    def spent(self, rates: Throughput, ranks: int) -> int | float:
        """Return the seconds of all processes together."""
        return self.seconds(rates) * (ranks if self.share is None else 1 / (self.share or 1))

"""Write the finished layers of a group while the layers of the next one are rounded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nearplane.types import LayerReport, QuantizedWeight
from nearplane.walk.background import Background, Job
from nearplane.walk.hidden_states import CPU
from nearplane.walk.rounding import Finished, LayerStore


@dataclass
class WriteBehind:
    """A `LayerStore` that hands what is kept to another thread, in order.

    While a group of layers is rounded, at most the group before it is not written yet. What a run
    that is ended leaves is what was written: the first groups, each of them whole.

    - `before`: the last job that was handed in before the group that is being written.
    """

    store: LayerStore
    thread: Background
    before: Job | None = None

    def keep(self, place: int, originals: Sequence[Tensor], done: Sequence[Finished]) -> None:
        """Hand in a group of layers."""
        # copied here: a device's memory is not held for a writer
        weights = [original.to(CPU) for original in originals]
        self.thread.start(self.store.keep, place, weights, [to_write(each) for each in done])

    def find(
        self, place: int, names: Sequence[str], originals: Iterable[Tensor]
    ) -> list[Finished] | None:
        """Return what an earlier process stored; waits until room is there for another group."""
        if self.before is not None:
            self.before.result()
        self.before = self.thread.latest
        return self.store.find(place, names, originals)


def to_write(done: tuple[QuantizedWeight, LayerReport]) -> Finished:
    """Return what is stored of a layer, in the machine's memory.

    Integers are in the record: in their place are zeros, which take no memory.
    """
    weight, report = done
    zeros = torch.zeros((), dtype=weight.code.dtype, device=CPU).expand(weight.code.shape)
    bound = None if weight.bound is None else weight.bound.to(CPU)
    row_step = None if weight.row_step is None else weight.row_step.to(CPU)
    stored = replace(
        weight,
        code=zeros,
        step=weight.step.to(CPU),
        outliers=None,
        record=weight.record.to(CPU),
        loss=weight.loss.to(CPU),
        damped_loss=weight.damped_loss.to(CPU),
        bound=bound,
        row_step=row_step,
    )
    return stored, report

"""How a run keeps within its memory: what stays on disk, what waits, what is computed again."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nearplane.lattice.nearest_plane import TILE
from nearplane.model.block_loading import stand_alone
from nearplane.plan.footprint import Memory, MemoryNeeds
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import Survey
from nearplane.types import NearplaneError
from nearplane.walk.placement import ActivationLimits

GIB = 2**30


@dataclass(frozen=True)
class Offload:
    """What a run does to keep within its memory, and the memory that it then needs.

    - `by_blocks`: whether one block's weights are in memory at a time, or all.
    - `spilled`: whether hidden states between blocks go to a file.
    - `columns`: of the widest layer.
    - `paused`: how many of `batches` wait in memory from stage to stage; what the others were is
      computed again for each.
    """

    by_blocks: bool
    spilled: bool
    paused: int
    batches: int
    memory: Memory
    columns: int

    def limits(self, out: str | Path) -> ActivationLimits:
        """Return the limits of a walk whose files go beside OUT, or where temporary files go."""
        beside = Path(out).expanduser().resolve().parent
        directory = beside if beside.is_dir() else Path(tempfile.gettempdir())
        return ActivationLimits(self.paused, directory if self.spilled else None)

    def sentence(self) -> str:
        """Say in one line what is done."""
        weights = "one block's at a time" if self.by_blocks else "all"
        states = "in a file beside OUT" if self.spilled else "in memory"
        waiting = (
            "all batches wait in memory from stage to stage"
            if self.paused >= self.batches
            else f"{self.paused} of {self.batches} batches wait in memory from stage to stage, "
            "the others are computed again for each"
        )
        return f"weights in memory: {weights}; hidden states: {states}; {waiting}"

    def precision(self) -> str:
        """Say in one line in which precision and portions a layer is rounded."""
        return (
            f"Hessians in float32, factors in float64, {TILE} rows rounded at a time; at most "
            f"{self.columns} columns share a Hessian"
        )


def choose_offload(
    found: Survey, run: RunSize, allowed: int | float, promised: bool = False
) -> Offload:
    """Return the fastest means by which a run keeps within the memory that it is allowed.

    If none does, those of least memory; NearplaneError that says so if it was promised.
    """
    needs = MemoryNeeds(found, run)
    means = None
    for means in ways(found, needs):
        if means.memory.total <= allowed:
            return means
    assert means is not None
    if promised:
        raise NearplaneError(
            f"{allowed / GIB:.2f} GiB of memory are too little for {found.name}: this run needs at "
            f"least {means.memory.total / GIB:.2f} GiB ({means.memory.sentence()})"
        )
    return means


def ways(found: Survey, needs: MemoryNeeds) -> Iterator[Offload]:
    """Yield what can be done about memory, the fastest first and that of least memory last."""
    batches = needs.batches
    yield offload_by(needs, False, False, batches)
    by_blocks = can_be_read_by_blocks(found)
    if by_blocks:
        yield offload_by(needs, True, False, batches)
    paused = batches
    while True:
        yield offload_by(needs, by_blocks, True, paused)
        if not paused:
            return
        paused = paused * 3 // 4


def offload_by(needs: MemoryNeeds, by_blocks: bool, spilled: bool, paused: int) -> Offload:
    """Return the offload of these choices, with the memory that it takes."""
    memory = needs.memory(by_blocks, spilled, paused)
    return Offload(by_blocks, spilled, paused, needs.batches, memory, needs.widest)


def can_be_read_by_blocks(found: Survey) -> bool:
    """Whether blocks can be loaded one by one: not of GGUF files, nor where they share weights."""
    return not found.empty.is_gguf and stand_alone(found.model, found.blocks)

"""Choose what a run keeps on disk or computes again, to stay within its memory."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from nearplane.lattice.float64 import float64_devices
from nearplane.lattice.nearest_plane import TILE
from nearplane.model.block_loading import stand_alone
from nearplane.model.process_memory import available_bytes
from nearplane.plan.footprint import MemoryNeeds
from nearplane.plan.memory import Memory
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import Survey
from nearplane.types import NearplaneError
from nearplane.walk.device import Accelerator
from nearplane.walk.hidden_states import CPU
from nearplane.walk.placement import ActivationLimits
from nearplane.walk.ranks import Ranks

GIB = 2**30


@dataclass(frozen=True)
class Offload:
    """What a run keeps on disk or computes again, and the memory that it then needs.

    - `by_blocks`: whether one block's weights are in memory at a time, or all.
    - `spilled`: whether hidden states between blocks go to a file.
    - `columns`: of the widest layer.
    - `device`: the memory that an accelerator needs, on which blocks then run; else None.
    - `on_host`: whether hidden states between blocks leave it for the machine's memory.
    - `ahead`: whether finished layers are written while others are rounded; and, where `reads`, the
      next block is read while one runs: blocks that are read one by one or copied to a device.
    - `paused`: for how many of `batches` a block's forward pass stays in memory from stage to
      stage; for the others it is computed again for every stage.
    """

    by_blocks: bool
    spilled: bool
    paused: int
    batches: int
    memory: Memory
    columns: int
    device: Memory | None = None
    on_host: bool = False
    ahead: bool = False
    reads: bool = False

    def limits(self, out: str | Path) -> ActivationLimits:
        """The limits of the walk; hidden states go to a file beside OUT, or to a temporary one."""
        beside = Path(out).expanduser().resolve().parent
        directory = beside if beside.is_dir() else Path(tempfile.gettempdir())
        directory = directory if self.spilled else None
        return ActivationLimits(self.paused, directory, self.on_host, self.ahead)

    def sentence(self) -> str:
        """Return the choices in one line."""
        weights = "one block's at a time" if self.by_blocks else "all"
        states = "in a file beside OUT" if self.spilled else "in memory"
        if self.device is not None and not (self.spilled or self.on_host):
            states = "on the device"
        waiting = (
            "all batches wait in memory from stage to stage"
            if self.paused >= self.batches
            else f"{self.paused} of {self.batches} batches wait in memory from stage to stage, "
            "the others are computed again for each"
        )
        there = "" if self.device is None else "on the device: one block's weights at a time; "
        beside = "layers are written" if self.ahead else "nothing is read or written"
        if self.ahead and self.reads:
            beside = "the next block is read and layers are written"
        want = "" if self.ahead else ", for want of memory"
        said = f"{there}weights in memory: {weights}; hidden states: {states}; {waiting}"
        return f"{said}; beside the work {beside}{want}"

    def precision(self) -> str:
        """Return in one line in which types, and how many rows at a time, a layer is rounded."""
        return (
            f"Hessians in float32, factors in float64, {TILE} rows rounded at a time; at most "
            f"{self.columns} columns share a Hessian"
        )


def choose_offload(
    survey: Survey, run: RunSize, allowed: int | float, promised: bool = False
) -> Offload:
    """Return the fastest offload with which a process needs at most `allowed` bytes.

    If there is none: the one of least memory, or NearplaneError if `promised`.
    """
    needs = MemoryNeeds(survey, run)
    offload = None
    for offload in ways(survey, needs):
        if offload.memory.total <= allowed:
            return offload
    assert offload is not None
    if promised:
        raise NearplaneError(too_little(survey, allowed, "memory", offload.memory))
    return offload


def too_little(survey: Survey, allowed: int | float, place: str, needed: Memory) -> str:
    """Say that so many bytes of a place are too little for a run, and what it needs there."""
    return (
        f"{allowed / GIB:.2f} GiB of {place} are too little for {survey.name}: this run needs at "
        f"least {needed.total / GIB:.2f} GiB ({needed.sentence()})"
    )


def fewer_waiting(batches: int) -> Iterator[int]:
    """Yield how many batches may wait inside a block, from all of them to none."""
    while batches:
        yield batches
        batches = batches * 3 // 4
    yield 0


def ways(survey: Survey, needs: MemoryNeeds) -> Iterator[Offload]:
    """Yield all offloads, from the fastest to the one of least memory.

    Each needs less than those before it: others would never be taken.
    """
    batches = needs.batches
    by_blocks = survey.empty.readable_by_blocks
    choices = [(False, False, batches), *([(True, False, batches)] if by_blocks else [])]
    choices += [(by_blocks, True, paused) for paused in fewer_waiting(batches)]
    least = float("inf")
    for each in choices:
        for ahead in (True, False):
            offload = offload_by(needs, *each, ahead)
            if offload.memory.total < least:
                least = offload.memory.total
                yield offload


def offload_by(
    needs: MemoryNeeds, by_blocks: bool, spilled: bool, paused: int, ahead: bool
) -> Offload:
    """Return the offload of these choices, with the memory that it takes."""
    memory = needs.memory(by_blocks, spilled, paused, ahead)
    where = by_blocks, spilled, paused, needs.batches, memory, needs.widest
    return Offload(*where, ahead=ahead, reads=by_blocks)


def offload_for(
    survey: Survey,
    sizes: tuple[int, int],
    ranks: Ranks,
    memory: int | None,
    accelerator: Accelerator | None = None,
) -> Offload:
    """Return what a process keeps elsewhere or computes again to stay within its memory.

    - `sizes`: how many sequences, and their length.
    - `memory`: bytes a process, NearplaneError if they are too few; None is all available.
    - `accelerator`: on which blocks run; None is the CPU.
    """
    sequences, length = sizes
    run = RunSize(max(sequences, ranks.size), length, ranks.size)
    allowed = available_bytes() / ranks.size if memory is None else memory
    if accelerator is None:
        return choose_offload(survey, run, allowed, promised=memory is not None)
    return choose_with_device(survey, run, allowed, accelerator, promised=memory is not None)


def choose_with_device(
    survey: Survey, run: RunSize, allowed: int | float, accelerator: Accelerator, promised: bool
) -> Offload:
    """Return the fastest offload with which neither the machine nor the device is overfilled.

    - `allowed`: bytes of the machine's memory; more is only refused if `promised`.

    Raises NearplaneError if there is none.
    """
    needs = MemoryNeeds(survey, run)
    last = None
    factors = accelerator.helped or float64_devices(accelerator.device).cubic == CPU
    for last in ways_with_device(survey, needs, factors):
        fits = last.device is not None and last.device.total <= accelerator.allowed
        if fits and last.memory.total <= allowed:
            return last
    assert last is not None and last.device is not None
    if accelerator.promised and last.device.total > accelerator.allowed:
        said = too_little(survey, accelerator.allowed, str(accelerator.device), last.device)
        raise NearplaneError(f"{said}; free some, raise --device-memory, or take --device cpu")
    if promised and last.memory.total > allowed:
        raise NearplaneError(too_little(survey, allowed, "memory", last.memory))
    return last


def ways_with_device(
    survey: Survey, needs: MemoryNeeds, factors: bool = False
) -> Iterator[Offload]:
    """Yield all offloads beside a device, from the fastest to the one of least memory.

    - `factors`: as in `MemoryNeeds.beside_device`.
    """
    by_blocks = [False, True] if survey.empty.readable_by_blocks else [False]
    reads = stand_alone(survey.model, survey.blocks)
    for paused in fewer_waiting(needs.batches):
        # hidden states: on the device, in the machine's memory, in a file
        for spilled, on_host in ((False, False), (False, True), (True, False)):
            device = needs.on_device(spilled or on_host, paused)
            for one_block, ahead in product(by_blocks, (True, False)):
                memory = needs.beside_device(one_block, on_host, factors, ahead)
                where = one_block, spilled, paused, needs.batches, memory, needs.widest
                yield Offload(*where, device, on_host, ahead, reads)

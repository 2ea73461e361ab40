"""Clocks and timers: how long some functions take while a method quantizes a matrix."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nearplane.codes.host import narrowest
from nearplane.op import Op
from nearplane.rows import TILE, Work, in_parts
from nearplane.walk.hidden_states import CPU


@dataclass(frozen=True)
class Clock:
    """Seconds since it was made, of wall time or of this process's CPU time, whichever is less.

    For work on one thread, the time that other programs take does not count.

    - `device`: whose work is waited for; of another one than the CPU, wall time counts.
    """

    device: torch.device = CPU
    wall: float = 0.0
    own: float = 0.0

    @classmethod
    def started(cls, device: torch.device = CPU) -> "Clock":
        wait_for(device)
        return cls(device, time.perf_counter(), time.process_time())

    @property
    def seconds(self) -> float:
        wait_for(self.device)
        wall, own = time.perf_counter() - self.wall, time.process_time() - self.own
        return min(wall, own) if self.device == CPU else wall


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device != CPU:
        torch.accelerator.synchronize(device)


@dataclass
class Timer:
    """How long calls of some functions took, and how many rows they were on.

    - `ops`: the functions, whose first argument has rows. A call inside of another is part of it.
    """

    ops: Sequence[Op]
    device: torch.device = CPU
    seconds: float = 0.0
    rows: int = 0
    inside: bool = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time all calls that are made inside a `with` block."""
        with ExitStack() as stack:
            for op in self.ops:
                stack.enter_context(op.within(partial(self.timed, op)))
            yield

    def timed(self, op: Op, rows: Any, *others: Any, **named: Any) -> Any:
        """Call a function, add its time and rows, return its result."""
        if self.inside:
            return op(rows, *others, **named)
        self.inside, started = True, Clock.started(self.device)
        try:
            result = op(rows, *others, **named)
        finally:
            self.inside = False
        self.seconds += started.seconds
        self.rows += len(rows)
        return result


@dataclass
class PartsTimer:
    """How long the work took that processes can share, by rows or by pieces of integers.

    - `timers`: of functions whose time is left out.
    - `calls`: how often there was such work. `sent`: bytes of its results, sent to all processes.
    """

    timers: Sequence[Timer]
    device: torch.device = CPU
    rows_s: float = 0.0
    pieces_s: float = 0.0
    calls: int = 0
    sent: int = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time all calls of `rows.in_parts` inside a `with` block, but for those inside others."""
        with in_parts.within(self.timed):
            yield

    @property
    def left_out(self) -> float:
        """Seconds so far of what is left out."""
        return sum(timer.seconds for timer in self.timers)

    def timed(self, work: Work, count: int, grain: int = TILE) -> list[tuple[Tensor, ...]]:
        """Call `in_parts`, add its time and the bytes of its results, return these."""
        inside = any(timer.inside for timer in self.timers)
        before, started = self.left_out, Clock.started(self.device)
        results = in_parts(work, count, grain)
        seconds = 0.0 if inside else started.seconds - (self.left_out - before)
        self.rows_s += seconds if grain == TILE else 0.0
        self.pieces_s += seconds if grain != TILE else 0.0
        self.calls += 1
        self.sent += sum(bytes_of(each) for part in results for each in part)
        return results


def bytes_of(result: Tensor) -> int:
    """Return about the bytes of a tensor in a message, from the range of 1000 of its numbers."""
    some = result.reshape(-1)[:: max(1, result.numel() // 1000)]
    return result.numel() * narrowest(some).dtype.itemsize

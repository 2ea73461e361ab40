"""Clocks and timers: how long some functions take while a method quantizes a matrix."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nearplane.model.operator_count import OperatorCount
from nearplane.op import Op
from nearplane.rows import TILE, Work, in_parts
from nearplane.walk.hidden_states import CPU
from nearplane.walk.messages import narrowest


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
    """How long calls of a function took, and how many rows they were on.

    - `op`: the function, whose first argument is a matrix; its operators are not counted.
    """

    op: Op
    operators: OperatorCount
    seconds: float = 0.0
    rows: int = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time all calls that are made inside a `with` block."""
        with self.op.within(self.timed):
            yield

    def timed(self, rows: Tensor, *others: Any, **named: Any) -> Tensor:
        """Call the function, add its time and rows, return its result."""
        started = Clock.started(rows.device)
        with self.operators.pause():
            result = self.op(rows, *others, **named)
        self.seconds += started.seconds
        self.rows += len(rows)
        return result


@dataclass
class PartsTimer:
    """How long the work took that processes can share, by rows or by pieces of integers.

    Time of operators that are counted, and of timed functions, is left out.

    - `calls`: how often there was such work. `sent`: bytes of its results, sent to all processes.
    """

    operators: OperatorCount
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
        return self.operators.seconds + sum(timer.seconds for timer in self.timers)

    def timed(self, work: Work, count: int, grain: int = TILE) -> list[tuple[Tensor, ...]]:
        """Call `in_parts`, add its time and the bytes of its results, return these."""
        inside, before, started = self.operators.paused, self.left_out, Clock.started(self.device)
        results = in_parts(work, count, grain)
        # of work inside of timed functions all is left out
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

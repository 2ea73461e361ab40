"""The processes that quantize one model together: sums over their tokens, rows shared out.

Every process walks the whole model on its own share of the calibration. Hessians are summed over
all of them, so all know the same; then each rounds some rows of a matrix, since with the factor
given every row is a closest-vector problem of its own, and all get all rows back.
"""

import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int64, Shaped
from torch import Tensor

from nearplane.lattice import nearest_plane, rate_aware_plane
from nearplane.lattice.nearest_plane import TILE
from nearplane.lattice.rate_aware import Prices
from nearplane.methods.certificate import times_triangle
from nearplane.types import NearplaneError


@dataclass(frozen=True)
class Ranks:
    """This process and how many there are."""

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> "Ranks":
        """Return the group that torchrun started this process in; alone if it did not."""
        if not dist.is_available() or not dist.is_torchelastic_launched():
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("gloo")
            atexit.register(dist.destroy_process_group)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def share(self, tokens: Int64[Tensor, "n length"]) -> Int64[Tensor, "share length"]:
        """Return this process's sequences.

        NearplaneError if there are fewer than processes.
        """
        if len(tokens) < self.size:
            raise NearplaneError(
                f"{len(tokens)} sequences cannot be shared by {self.size} processes: give more "
                "calibration or start fewer"
            )
        return tokens[self.rank :: self.size]

    def sum_(self, *tensors: Tensor) -> None:
        """Add every tensor up over all processes, in place, to the same bits in each."""
        for tensor in tensors if self.size > 1 else ():
            self._together(lambda tensor=tensor: dist.all_reduce(tensor))

    def total(self, count: int) -> int:
        """Return a number added up over all processes."""
        whole = torch.tensor([count])
        self.sum_(whole)
        return int(whole)

    def from_first_(self, *tensors: Tensor) -> None:
        """Make tensors those of the first process, in place."""
        for tensor in tensors if self.size > 1 else ():
            self._together(lambda tensor=tensor: dist.broadcast(tensor, 0))

    def bytes_of_first(self, content: bytes | None) -> bytes | None:
        """Return what the first process has."""
        if self.size == 1:
            return content
        size = torch.tensor([-1 if content is None else len(content)])
        self.from_first_(size)
        if int(size) < 0:
            return None
        whole = torch.empty(int(size), dtype=torch.uint8)
        if self.first and content:
            whole = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self.from_first_(whole)
        return whole.numpy().tobytes()

    @contextmanager
    def sharing_rows(self) -> Iterator[None]:
        """Let every process do some rows of what is done row by row, and have all of them."""
        if self.size == 1:
            yield
            return
        ops = (nearest_plane, rate_aware_plane, times_triangle)
        before = [op.versions for op in ops]
        for op, versions in zip(ops, before, strict=True):
            shared = self._shared(op.reference)
            op.versions = {"ranks": (lambda *_, **__: True, shared), **versions}
        try:
            yield
        finally:
            for op, versions in zip(ops, before, strict=True):
                op.versions = versions

    def _shared(self, solve: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def by_rows(rows: Tensor, factor: Tensor, *others: Any, **named: Any) -> Tensor:
            starts = self._starts(len(rows))
            mine = slice(starts[self.rank], starts[self.rank + 1])
            own = [of_rows(each, mine, len(rows)) for each in others]
            if mine.start == mine.stop:
                # the type of the result, from the least work
                some = [of_rows(each, slice(0, 1), len(rows)) for each in others]
                return self._gathered(solve(rows[:1], factor, *some, **named)[:0], starts)
            return self._gathered(solve(rows[mine], factor, *own, **named), starts)

        return by_rows

    def _starts(self, rows: int) -> list[int]:
        """Return where each process's rows begin, and the end: whole tiles each.

        A tile is what one process rounds at once when it is alone, so that nothing differs.
        """
        tiles = -(-rows // TILE)
        return [min(rows, tiles * rank // self.size * TILE) for rank in range(self.size + 1)]

    def _gathered(
        self, own: Shaped[Tensor, "own n"], starts: list[int]
    ) -> Shaped[Tensor, "rows n"]:
        whole = own.new_empty((starts[-1], own.shape[1]))
        whole[starts[self.rank] : starts[self.rank + 1]] = own
        for rank in range(self.size):
            part = whole[starts[rank] : starts[rank + 1]]
            if len(part):
                self._together(lambda part=part, rank=rank: dist.broadcast(part, rank))
        return whole

    def _together(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except RuntimeError as error:
            raise NearplaneError(
                f"process {self.rank} of {self.size} lost the others ({first_line(error)}): one of "
                "them ended; finished layers are kept, go on with --resume"
            ) from error


ALONE = Ranks()


def of_rows(argument: Any, rows: slice, count: int) -> Any:
    """Return an argument for some of `count` rows."""
    if isinstance(argument, Prices):
        return replace(argument, row=argument.row[rows])
    has_rows = isinstance(argument, Tensor) and argument.dim() == 2 and len(argument) == count
    return argument[rows] if has_rows and count > 1 else argument


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

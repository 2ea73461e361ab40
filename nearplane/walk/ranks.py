"""The processes that quantize one model together: sums over their tokens, rows shared out.

Every process runs the whole model on its own share of the calibration. Hessians are summed over
all processes; then each process rounds some rows of a matrix, since with the factor given every
row is a closest-vector problem of its own. The results for the rows (`rows.in_parts`) are sent to
all: integers in the fewest bytes that hold them, histograms, a loss a row.
"""

import atexit
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int64
from torch import Tensor

from nearplane.rows import TILE, Work, in_parts, starts_of_parts
from nearplane.types import NearplaneError, first_line
from nearplane.walk.messages import from_message, to_message

FAILED = -1  # sent in place of a message's size
CPU = torch.device("cpu")  # where messages and counts are


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
            # If transformers imported it later, its functions' default values would keep the group,
            # whose threads would then outlive Python and abort the process
            importlib.import_module("torch.distributed.nn")
            # only gloo was tried: no tensor of a GPU has been sent yet
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
            atexit.register(dist.destroy_process_group)
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
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
        """Sum every tensor over all processes, in place; equal bit by bit in all of them."""
        for tensor in tensors if self.size > 1 else ():
            self._together(lambda tensor=tensor: dist.all_reduce(tensor))

    def total(self, count: int) -> int:
        """Return a number added up over all processes."""
        whole = torch.tensor([count], device=CPU)
        self.sum_(whole)
        return int(whole)

    def from_first_(self, *tensors: Tensor) -> None:
        """Make tensors those of the first process, in place."""
        for tensor in tensors if self.size > 1 else ():
            self._together(lambda tensor=tensor: dist.broadcast(tensor, 0))

    def bytes_of_first(self, content: bytes | None) -> bytes | None:
        """Return the `content` of the first process."""
        if self.size == 1:
            return content
        size = torch.tensor([-1 if content is None else len(content)], device=CPU)
        self.from_first_(size)
        if int(size) < 0:
            return None
        whole = torch.empty(int(size), dtype=torch.uint8, device=CPU)
        if self.first and content:
            whole = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self.from_first_(whole)
        return whole.numpy().tobytes()

    @contextmanager
    def sharing_rows(self) -> Iterator[None]:
        """Inside a `with` block, divide calls of `rows.in_parts` among the processes.

        Every process gets the results of all. A call of `in_parts` inside a part is not divided.
        An error in one process is raised in all, so that none waits for it.
        """
        if self.size == 1:
            yield
            return

        def shared(work: Work, count: int, grain: int = TILE) -> list[tuple[Tensor, ...]]:
            starts = self._starts(count, grain)
            part = slice(starts[self.rank], starts[self.rank + 1])
            try:
                result = work(part) if part.start < part.stop else None
            except Exception:
                self._sizes(FAILED)
                raise
            return self._gathered(result)

        with in_parts.within(shared, lambda work, count, grain=TILE: count > 0):
            yield

    def _starts(self, count: int, grain: int) -> list[int]:
        """Return where each process's part begins, and the end."""
        return starts_of_parts(count, grain, self.size)

    def _gathered(self, result: tuple[Tensor, ...] | None) -> list[tuple[Tensor, ...]]:
        """Return the results of all processes in their order, without those that had no part."""
        message = (
            torch.zeros(0, dtype=torch.uint8, device=CPU) if result is None else to_message(result)
        )
        sizes, parts = self._sizes(len(message)), []
        if FAILED in sizes:
            failed = sizes.index(FAILED)
            raise NearplaneError(f"process {failed} of {self.size} failed at its part of a layer")
        for rank, size in enumerate(sizes):
            if not size:
                continue
            part = (
                message if rank == self.rank else torch.empty(size, dtype=torch.uint8, device=CPU)
            )
            self._together(lambda part=part, rank=rank: dist.broadcast(part, rank))
            parts.append(result if rank == self.rank else from_message(part))
        return parts

    def _sizes(self, own: int) -> list[int]:
        """Return the sizes of all processes' messages."""
        sizes = [torch.zeros(1, dtype=torch.int64, device=CPU) for _ in range(self.size)]
        self._together(lambda: dist.all_gather(sizes, torch.tensor([own], device=CPU)))
        return [int(size) for size in sizes]

    def _together(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except RuntimeError as error:
            raise NearplaneError(
                f"process {self.rank} of {self.size} lost the others ({first_line(error)}): one of "
                "them ended; finished layers are kept, go on with --resume"
            ) from error


ALONE = Ranks()

"""The hidden states of all batches between two blocks: in memory, elsewhere or in a file."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from nearplane.model.block_files import plain_memory
from nearplane.types import NearplaneError

CPU = torch.device("cpu")
PINNING = ("cuda", "xpu")  # devices to which copies from pinned memory need not be waited for
PAGE = 4096  # bytes to which a tensor's place in the file is rounded up, so that it can be mapped


@runtime_checkable
class HiddenStates(Protocol):
    """Tensors that are appended one by one and read as often as is needed."""

    def append(self, tensor: Tensor, /) -> None: ...

    # where blocks run
    def __getitem__(self, index: int, /) -> Tensor: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Place:
    """Where in the file a tensor lies, and what it is."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype


class StatesInFile:
    """Hidden states in a temporary file, which is deleted with this object.

    Tensors that are read are mapped: only the pages in use take memory. Writing to such a tensor
    does not change the file.
    """

    def __init__(self, directory: Path, device: torch.device = CPU):
        try:
            self.file: IO[bytes] = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise NearplaneError(f"cannot write in {directory}: {error.strerror}") from error
        self.directory, self.device = directory, device
        self.places: list[Place] = []
        self.end = 0

    def append(self, tensor: Tensor) -> None:
        """Write a tensor; NearplaneError if the disk is full."""
        numbers = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        try:
            self.file.seek(self.end)
            numbers.tofile(self.file)
        except OSError as error:
            raise NearplaneError(
                f"{len(numbers) / 1e9:.3f} GB of hidden states could not be written in "
                f"{self.directory}: {error.strerror or error}"
            ) from error
        self.places.append(Place(self.end, tensor.shape, tensor.dtype))
        self.end += -(-len(numbers) // PAGE) * PAGE

    def kept(self, index: int) -> Tensor:
        """Return a tensor as it is kept."""
        place = self.places[index]
        bytes_ = place.shape.numel() * place.dtype.itemsize
        if not bytes_:
            return torch.empty(place.shape, dtype=place.dtype, device=CPU)
        mapped: Any = np.memmap(self.file, np.uint8, "c", place.offset, bytes_)  # pyright: ignore
        return torch.from_numpy(mapped).view(place.dtype).view(place.shape)

    def __getitem__(self, index: int) -> Tensor:
        return self.kept(index).to(self.device)

    def __len__(self) -> int:
        return len(self.places)


class StatesOnHost:
    """Hidden states of another device in the machine's memory, pinned for fast copies."""

    def __init__(self, device: torch.device):
        self.device = device
        self.copies: list[Tensor] = []

    def append(self, tensor: Tensor) -> None:
        """Keep a copy of a tensor."""
        copy = host_memory(tensor.nbytes, device=self.device).view(tensor.dtype).view(tensor.shape)
        self.copies.append(copy.copy_(tensor.detach()))

    def kept(self, index: int) -> Tensor:
        """Return a tensor as it is kept."""
        return self.copies[index]

    def __getitem__(self, index: int) -> Tensor:
        return self.kept(index).to(self.device)

    def __len__(self) -> int:
        return len(self.copies)


def host_memory(count: int, where: int = 0, *, device: torch.device) -> Tensor:
    """Return so many bytes of the machine's memory, pinned where that helps copies to a device.

    - `where`: see `plain_memory`.
    """
    if device.type in PINNING:
        try:
            return torch.empty(count, dtype=torch.uint8, device=CPU, pin_memory=True)
        # systems bound what may be pinned
        except RuntimeError:
            pass
    return plain_memory(count, where)


def pinned_bytes(count: int | float) -> int:
    """Return how many bytes torch pins for a tensor of so many: the next power of two."""
    return 1 << (ceil(count) - 1).bit_length() if count else 0


Spilled = StatesInFile | StatesOnHost  # elsewhere than where blocks run and make them


def each(states: HiddenStates) -> Iterator[Tensor]:
    """Yield all tensors, in their order."""
    return (states[index] for index in range(len(states)))


def kept(states: HiddenStates, index: int) -> Tensor:
    """Return a tensor where it is kept, which may be elsewhere than where blocks run."""
    return states.kept(index) if isinstance(states, Spilled) else states[index]


def rows_of(states: HiddenStates, index: int, rows: Tensor | slice) -> Tensor:
    """Return some rows of a tensor where blocks run; no others are copied there."""
    if not isinstance(states, Spilled):
        return states[index][rows]
    chosen = rows.to(CPU) if isinstance(rows, Tensor) else rows
    return states.kept(index)[chosen].to(states.device)

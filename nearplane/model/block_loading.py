"""Loading the weights of blocks one at a time, so that a model may be larger than the memory."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nearplane.model.block_files import Allocate, BlockFiles, Tensors, plain_memory
from nearplane.model.experts import split_experts_
from nearplane.model.process_memory import forget_file_pages, trim
from nearplane.types import NearplaneError


@runtime_checkable
class BlockLoader(Protocol):
    """Brings the weights of a model's blocks into memory."""

    def loaded(self, index: int, read: Tensors | None = None) -> AbstractContextManager[None]:
        """Keep the weights of block `index` in memory inside a `with` block.

        - `read`: what was read of them before.
        """
        ...


class InMemory:
    """All blocks are in memory all the time."""

    def loaded(self, index: int, read: Tensors | None = None) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class OnDisk:
    """One block is in memory at a time; the others are on the meta device, and take no memory.

    Changes of a block's weights are lost when it is freed.

    - `blocks`: of the model; their modules stay, their tensors are replaced.
    - `load`: reads block `index` from the disk and returns it as a new module.
    - `files`: those it is read from; None where nothing can be read ahead.
    """

    blocks: nn.ModuleList
    load: Callable[[int], nn.Module]
    files: BlockFiles | None = None

    @contextmanager
    def loaded(self, index: int, read: Tensors | None = None) -> Iterator[None]:
        block = self.blocks[index]
        with nullcontext() if self.files is None else self.files.giving(read or {}):
            fill_(block, self.load(index))
        if read:
            read.clear()  # what the class does not take
        try:
            yield
        finally:
            empty_(block)
            forget_file_pages()
            trim()

    def read(self, index: int, allocate: Allocate = plain_memory) -> Tensors:
        """Return the tensors of a block, for `loaded`; changes nothing, so that any thread may.

        Raises NearplaneError if a file cannot be read.
        """
        if self.files is None:
            return {}
        return self.files.read(index, bytes_in(self.blocks[index]), allocate)


def bytes_in(block: nn.Module) -> int:
    """Return the bytes of a block's tensors, wherever they are."""
    return sum(tensor.nbytes for tensor in (*block.parameters(), *block.buffers()))


def fill_(block: nn.Module, fresh: nn.Module) -> None:
    """Give a block, whose experts may be split, the tensors of `fresh`, a new copy of it.

    Raises NearplaneError if they have other parts, as a model has that exchanges them as it runs.
    """
    split_experts_(fresh)
    fresh.requires_grad_(False)
    if [name for name, _ in block.named_modules()] != [name for name, _ in fresh.named_modules()]:
        raise NearplaneError(
            f"a {type(block).__name__} exchanges its parts while the model runs: its blocks cannot "
            "be read one by one"
        )
    for name, module in block.named_modules():
        twin = fresh.get_submodule(name)
        module._parameters.update(twin._parameters)
        module._buffers.update(twin._buffers)


def empty_(block: nn.Module) -> None:
    """Free a block's tensors; shapes and types stay."""
    for module in block.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(without_numbers(parameter), False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = without_numbers(buffer)


def without_numbers(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape and type on the meta device."""
    return torch.empty_like(tensor, device="meta")


def stand_alone(model: nn.Module, blocks: nn.ModuleList) -> bool:
    """Whether no block shares a parameter with another block, or with the rest of the model.

    - `model`: may be on the meta device.
    """
    owners = Counter(
        id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)
    )
    return all(owners[id(parameter)] == 1 for parameter in blocks.parameters())

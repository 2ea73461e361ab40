"""Where a walk's tensors live, and the type that a model's weights have while they are used.

Weights in a type that this processor multiplies slowly are widened while they are used: a block
at a time, and what is outside of the blocks only while that runs.
"""

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearplane.lattice.float64 import float64_devices
from nearplane.model.block_files import Allocate, Tensors
from nearplane.model.block_loading import BlockLoader, InMemory, OnDisk, stand_alone
from nearplane.model.blocks import find_blocks
from nearplane.model.buffers import buffers_in
from nearplane.model.compute_dtype import precise
from nearplane.walk.background import Background
from nearplane.walk.hidden_states import (
    CPU,
    PINNING,
    Spilled,
    StatesInFile,
    StatesOnHost,
    host_memory,
)
from nearplane.walk.read_ahead import read_ahead

NamedModules = Iterable[tuple[str, nn.Module]]
Slots = dict[str, Any]  # a module's parameters or buffers, by name


@dataclass(frozen=True)
class Converted:
    """A tensor of a module that is replaced by one of another type inside a `with` block.

    - `tensors`, `name`: the dictionary that holds it, and its key there.
    - `before`: the tensor. `now`: its replacement. `address`: of the first memory of `now`.
    - `version`: how often `now` had been written to.
    """

    tensors: Slots
    name: str
    before: Tensor
    now: Tensor
    address: int
    version: int

    def undo(self) -> None:
        """Put the tensor back; with new data if some was assigned to the replacement."""
        if self.now.data_ptr() != self.address:
            self.before.data = self.now.data.to(self.before.device)
        elif self.now._version != self.version and self.now.device != self.before.device:
            with torch.no_grad():
                self.before.copy_(self.now)
        self.tensors[self.name] = self.before


@dataclass(frozen=True)
class ActivationLimits:
    """How much of a calibration's activations stays in memory; results do not depend on it.

    - `paused`: for how many batches the forward pass of a block stays in memory from stage to
      stage; for the others it starts anew for every stage. None is all.
    - `directory`: of the file of hidden states between blocks; None keeps them in memory.
    - `on_host`: keep them in the machine's memory, where blocks run on another device.
    - `ahead`: whether memory is there to read the next block's weights, and to write finished
      layers, while a block runs and is rounded.
    """

    paused: int | None = None
    directory: Path | None = None
    on_host: bool = False
    ahead: bool = False


@dataclass
class Placement:
    """The one owner of where a walk's tensors live: on which device, in memory or in a file.

    Results of operations live where their operands do; new tensors are created on `device`.

    - `model`: the model that is run.
    - `loader`: brings the weights of its blocks into memory.
    - `dtype`: the type of products; None is as stored. Tensors that it holds exactly are converted
      to it, and parameters of the model's own type, except those that its class keeps in float32.
    - `limits`: of the activations in memory.
    - `device`: on which blocks run, and sums over their inputs are computed. Weights that are
      elsewhere are copied to it: a block's while it runs, what is outside of the blocks likewise.
    - `stored`: the tensors in whose place others are used, by their identities.
    - `copies`: of the block's tensors that were read ahead for the device, by their identities.
    """

    model: nn.Module
    loader: BlockLoader = field(default_factory=InMemory)
    dtype: torch.dtype | None = None
    limits: ActivationLimits = field(default_factory=ActivationLimits)
    device: torch.device = CPU
    stored: dict[int, Any] = field(default_factory=dict)
    copies: Tensors = field(default_factory=dict)

    def precise(self) -> "Placement":
        """Return a placement like this one, with products in float32 where its are in less."""
        return replace(self, dtype=precise(self.dtype or self.own_dtype), stored={}, copies={})

    @cached_property
    def blocks(self) -> nn.ModuleList:
        return find_blocks(self.model)[1]

    @cached_property
    def list_name(self) -> str:
        """The name of the list of blocks."""
        return find_blocks(self.model)[0]

    def hidden_states(self) -> Spilled | list[Tensor]:
        """Return an empty list for the hidden states of all batches, wherever they are kept."""
        if self.limits.directory is not None:
            return StatesInFile(self.limits.directory, self.device)
        on_host = self.limits.on_host and self.device != CPU
        return StatesOnHost(self.device) if on_host else []

    def spilled_states(self) -> Spilled | None:
        """Return an empty list for hidden states; None where they stay where they are made."""
        states = self.hidden_states()
        return None if isinstance(states, list) else states

    @property
    def device_name(self) -> str:
        """The accelerator's name, and whether the CPU factors for it; "" for the processor."""
        if self.device.type == "cpu":
            return ""
        cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if cuda else str(self.device)
        beside = float64_devices(self.device).cubic == CPU
        return f"{name} (factors and certificates on the CPU)" if beside else name

    def on_device(self, tokens: Tensor) -> Tensor:
        """Return tokens where the model runs."""
        return tokens.to(self.device)

    @contextmanager
    def block(self, index: int, read: Tensors | None = None) -> Iterator[None]:
        """Keep a block's weights in memory, in the type of products, inside a `with` block.

        - `read`: what `read` returned for it before.
        """
        self.copies = {} if isinstance(self.loader, OnDisk) else read or {}
        with self.loader.loaded(index, read), self.converted(self.blocks[index].named_modules()):
            try:
                yield
            finally:
                self.copies = {}

    def in_order(self, order: Sequence[int]) -> Generator[int, None, None]:
        """Yield indices of blocks, each inside of its `block`; close it when it is left early.

        Weights are read while the block before runs, where limits allow it.
        """
        reads = self.limits.ahead and self.reads_ahead
        with Background(threaded=reads) as thread:
            blocks = read_ahead(order, self.read, thread) if reads else zip(order, repeat(None))
            for index, read in blocks:
                with self.block(index, read):
                    del read
                    yield index

    @property
    def reads_ahead(self) -> bool:
        """Whether blocks are read or copied one by one: from the disk, or for another device."""
        if isinstance(self.loader, OnDisk):
            return self.loader.files is not None
        return self.device != CPU and stand_alone(self.model, self.blocks)

    def read(self, index: int) -> Tensors:
        """Return the weights of a block in memory of their own, from which copies are fast.

        Changes nothing, so that another thread may. From the disk by their names in the files, for
        `loader`; else by the identities of the block's tensors.
        """
        allocate = partial(host_memory, device=self.device)
        if isinstance(self.loader, OnDisk):
            return self.loader.read(index, allocate)
        block = self.blocks[index]
        tensors = (t for t in (*block.parameters(), *block.buffers()) if t.device == CPU)
        # others would come with other strides
        plain = (tensor for tensor in tensors if tensor.is_contiguous())
        return {id(tensor): copied(tensor.detach(), allocate) for tensor in plain}

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Convert what is outside of the blocks to the type of products inside a `with` block."""
        inside = set(self.blocks.modules())
        with self.converted((n, m) for n, m in self.model.named_modules() if m not in inside):
            yield

    @contextmanager
    def between(self) -> Iterator[None]:
        """Convert what runs between two blocks inside a `with` block.

        Modules with matrices are converted when they are called, all others at once: code of
        models asks for the type of a norm's weight in front of it. Modules that the blocks are
        inside are running.
        """
        inside = set(self.blocks.modules())
        parts = [(n, m) for n, m in self.model.named_modules() if m not in inside]
        if self.as_they_are:
            parts = []
        with ExitStack() as stack:
            for name, module in parts:
                around = self.list_name == name or self.list_name.startswith(
                    f"{name}." if name else ""
                )
                if around or all(p.ndim < 2 for p in module.parameters(recurse=False)):
                    stack.enter_context(self.converted([(name, module)]))
                else:
                    convert = partial(self.convert_until_end, stack, name)
                    stack.callback(module.register_forward_pre_hook(convert).remove)
            yield

    def convert_until_end(self, stack: ExitStack, name: str, module: nn.Module, _: tuple) -> None:
        stack.enter_context(self.converted([(name, module)]))

    @property
    def as_they_are(self) -> bool:
        """Whether weights are used where they are stored, and in their types."""
        return self.dtype is None and self.device == CPU

    def original(self, module: nn.Module) -> Tensor:
        """Return the weight of a linear layer as it is stored, also while it is converted."""
        owner = self.owner(module)
        return self.copies.get(id(owner), owner).detach()

    def owner(self, module: nn.Module) -> nn.Parameter:
        """Return the stored parameter of a linear layer, which other layers may be tied to."""
        weight: Any = module.get_parameter("weight")
        return self.stored.get(id(weight), weight)

    @contextmanager
    def converted(self, parts: NamedModules) -> Iterator[None]:
        """Convert tensors to the type of products inside a `with` block; keeps changes of them."""
        replacements: dict[int, Tensor] = {}
        swaps: list[Converted] = []
        try:
            for tensors, name, before, own, dtype in self.to_convert(parts):
                # tied parameters stay tied
                now = replacements.setdefault(id(before), before)
                if now is before:
                    now = self.as_used(before, dtype) if own is None else own
                    replacements[id(before)] = now
                    self.stored[id(now)] = before
                made = now.data_ptr(), now._version
                swaps.append(Converted(tensors, name, before, now, *made))
                tensors[name] = now
            yield
        finally:
            for swap in swaps:
                swap.undo()
                self.stored.pop(id(swap.now), None)

    def to_convert(
        self, parts: NamedModules
    ) -> Iterator[tuple[Slots, str, Tensor, Tensor | None, torch.dtype | None]]:
        """Yield the tensors of some modules that are elsewhere, or of another type than products.

        The fourth: what the class has there if it is loaded in the type of products; else None. The
        last: the type that the tensor is used in.
        """
        for prefix, module in parts if not self.as_they_are else ():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in list(tensors.items()):
                    if tensor is None or tensor.is_meta:
                        continue
                    own = self.own_buffer(module, name, tensor)
                    changes = self.converts(f"{prefix}.{name}", tensor)
                    if own is not None or changes or tensor.device != self.device:
                        yield tensors, name, tensor, own, self.dtype if changes else tensor.dtype

    def as_used(self, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Return a tensor of the model where it is used, in a type."""
        numbers = self.copies.get(id(tensor), tensor).detach()
        # what uses the copy comes behind it in the device's queue
        pinned = self.device.type in PINNING and numbers.is_pinned()
        return like(tensor, numbers.to(self.device, dtype, non_blocking=pinned))

    def own_buffer(self, module: nn.Module, name: str, tensor: Tensor) -> Tensor | None:
        """Return what the model's class has for a buffer in the type of products; None if equal."""
        own = self.buffers.get((module, name))
        # a table of positions may have grown while the model ran
        if own is None or own.dtype == tensor.dtype or own.shape != tensor.shape:
            return None
        return own.to(self.device)

    @cached_property
    def buffers(self) -> dict[tuple[nn.Module, str], Tensor]:
        """Buffers as the model's class has them in the type of products, where that is another.

        By module and name, as modules may be in another place for a while.
        """
        if self.dtype is None or self.dtype == self.own_dtype:
            return {}
        found, modules = buffers_in(self.model, self.dtype), dict(self.model.named_modules())
        parts = {name: name.rpartition(".") for name in found}
        return {
            (modules[owner], own): found[name]
            for name, (owner, _, own) in parts.items()
            if owner in modules
        }

    def converts(self, name: str, tensor: Tensor) -> bool:
        """Whether the products need a tensor in another type."""
        if self.dtype is None or tensor.dtype == self.dtype:
            return False
        if not tensor.is_floating_point() or tensor.is_meta:
            return False
        if torch.promote_types(tensor.dtype, self.dtype) == self.dtype:
            return True
        # parameters wider than the model stay so, and buffers, such as frequencies and scales
        if tensor.dtype != self.own_dtype or not isinstance(tensor, nn.Parameter):
            return False
        return not any(pattern.search(name) for pattern in self.kept_wide)

    @cached_property
    def own_dtype(self) -> torch.dtype:
        """The type that the model is loaded in: of its first parameter."""
        return next(self.model.parameters()).dtype

    @cached_property
    def kept_wide(self) -> list[re.Pattern[str]]:
        """The names of tensors that the model's class keeps in float32, in every type of model."""
        model: Any = self.model
        wanted = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
        names = [part for each in wanted for part in getattr(model, each, None) or ()]
        return [re.compile(rf"(^|\.){re.escape(name)}(\.|$)") for name in names]


def copied(tensor: Tensor, allocate: Allocate) -> Tensor:
    """Return a copy of a tensor in other memory, made by one thread."""
    copy = allocate(tensor.nbytes, 0)
    flat = tensor.flatten().view(torch.uint8)
    np.copyto(copy.numpy(), flat.numpy())
    return copy.view(tensor.dtype).view(tensor.shape)


def like(tensor: Tensor, numbers: Tensor) -> Tensor:
    """Return numbers as a parameter if they are those of one."""
    return (
        nn.Parameter(numbers, requires_grad=False) if isinstance(tensor, nn.Parameter) else numbers
    )

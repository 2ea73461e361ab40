"""Read the weights of a block by plain reads, so that another thread can do it ahead of their use.

transformers maps files and copies what it needs of them. Here it is told to take tensors that were
read before instead; names, conversions and checks stay its own.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from typing import Any

import torch
from torch import Tensor

from nearplane.model.blocks import TOWERS
from nearplane.types import NearplaneError, first_line

# returns so many bytes of memory, for what lies at some place of a file
Allocate = Callable[[int, int], Tensor]
Tensors = dict[Any, Tensor]

# as safetensors names them; tensors of other types are not read ahead
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
ALIGNED = 64  # bytes: of a line of the processor's cache, the widest alignment that matters


def plain_memory(count: int, where: int = 0) -> Tensor:
    """Return so many bytes of memory, aligned as those at a place of a file that is mapped.

    Products of matrices may depend on it, in their last digits.
    """
    memory = torch.empty(count + ALIGNED, dtype=torch.uint8, device="cpu")
    shift = (where - memory.data_ptr()) % ALIGNED
    return memory[shift : shift + count]


@dataclass(frozen=True)
class BlockFiles:
    """The safetensors files of a model, and where the weights of its blocks lie in them.

    - `name`: of the model. `blocks`: the name of the list of its blocks.
    - `paths`: of the files that the model was loaded from, noted inside `giving`.
    """

    name: str
    blocks: str
    paths: dict[str, None] = field(default_factory=dict)

    @contextmanager
    def giving(self, tensors: Tensors) -> Iterator[None]:
        """Let transformers take tensors, by their names in the files, inside a `with` block.

        They are taken out of `tensors`. What is not among them is mapped, as ever.
        """
        from transformers import modeling_utils

        module: Any = modeling_utils
        own = getattr(module, "safe_open", None)
        if own is None:
            # a version that opens files elsewhere: everything is mapped
            yield
            return

        def opened(path: Any, *args: Any, **options: Any) -> Any:
            self.paths[str(path)] = None
            return Opened(own(path, *args, **options), tensors)

        module.safe_open = opened
        try:
            yield
        finally:
            module.safe_open = own

    def read(self, index: int, most: int, allocate: Allocate = plain_memory) -> Tensors:
        """Return the tensors of block `index` by their names in the files; at most so many bytes.

        Raises NearplaneError if a file cannot be read, or ends too early.
        """
        found: Tensors = {}
        try:
            for path in self.paths:
                with open(path, "rb", buffering=0) as file:
                    start, entries = header(file)
                    for name in self.names(index, list(entries)):
                        begin, end = entries[name]["data_offsets"]
                        most -= end - begin
                        if most >= 0 and entries[name]["dtype"] in DTYPES:
                            where = start + begin
                            found[name] = tensor_at(file, where, end - begin, allocate).view(
                                DTYPES[entries[name]["dtype"]]
                            )
                            found[name] = found[name].view(entries[name]["shape"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise NearplaneError(
                f"the model {self.name} cannot be loaded: {first_line(error)}"
            ) from error
        return found

    def names(self, index: int, names: list[str]) -> list[str]:
        """Return which tensors are of block `index`, in the order of the file.

        Files may name the parts around the list of blocks otherwise than the class does.
        """
        exact = f"{self.blocks}.{index}."
        if some := [name for name in names if name.startswith(exact)]:
            return some
        alike = re.compile(rf"(^|\.){re.escape(self.blocks.rpartition('.')[2])}\.{index}\.")
        some = [name for name in names if alike.search(name)]
        return [name for name in some if not any(tower in name for tower in TOWERS)]


def header(file: FileIO) -> tuple[int, dict[str, Any]]:
    """Return where the tensors of a safetensors file begin, and what its header says of them."""
    length = int.from_bytes(file.read(8), "little")
    entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    in_order = sorted(entries.items(), key=lambda entry: entry[1]["data_offsets"])
    return 8 + length, dict(in_order)


def tensor_at(file: FileIO, where: int, count: int, allocate: Allocate) -> Tensor:
    """Return so many bytes of a file; OSError if it ends before them."""
    memory = allocate(count, where)
    view: Any = memory.numpy()
    file.seek(where)
    done = 0
    while done < count:
        got = file.readinto(view[done:])
        if not got:
            raise OSError(f"{file.name!s} ends before its byte {where + count}")
        done += got
    return memory


class Opened:
    """A file that safetensors opened, some of whose tensors were read before."""

    def __init__(self, file: Any, tensors: Tensors):
        self.file, self.tensors = file, tensors

    def get_slice(self, name: str) -> Any:
        own = self.file.get_slice(name)
        return Slice(own, self.tensors.pop(name)) if name in self.tensors else own

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "Opened":
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)


class Slice:
    """What stands for a tensor in a file until it is asked for: here, one that was read before."""

    def __init__(self, own: Any, tensor: Tensor):
        self.own, self.tensor = own, tensor

    def __getitem__(self, part: Any) -> Tensor:
        return self.tensor[part]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

"""One safetensors file, of which every tensor is on disk from the moment it is added."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from nearplane.export import output_directory
from nearplane.types import NearplaneError

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
ALIGNED = 8  # bytes of which the header has a multiple
CHUNK = 1 << 24  # bytes that are copied at a time


@dataclass(frozen=True)
class Entry:
    """A tensor of the file, and where it lies in the spool."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Shard:
    """A safetensors file in the making; `close` gives it its name.

    Tensors are spooled beside it as they come. A header comes before them and cannot be known
    earlier, so that they are copied once; the widest types lie first, so that all are aligned.
    """

    def __init__(self, path: Path):
        self.path = path
        self.spool_path = path.with_suffix(".spool")
        self.spool: IO[bytes] = open(self.spool_path, "w+b", buffering=0)  # noqa: SIM115
        self.entries: list[Entry] = []
        self.nbytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor; NearplaneError for a type that safetensors has no name for."""
        if tensor.dtype not in NAMES:
            raise NearplaneError(f"{name}: safetensors files hold no {tensor.dtype}")
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        with output_directory.explaining_full_disk(self.path.parent, tensor.nbytes):
            for chunk in flat.split(CHUNK):
                written(self.spool, memoryview(chunk.numpy()))
        shape = tuple(tensor.shape)
        self.entries.append(Entry(name, tensor.dtype, shape, self.nbytes, tensor.nbytes))
        self.nbytes += tensor.nbytes

    def close(self, metadata: dict[str, str]) -> None:
        """Write the file itself, durably, and remove the spool."""
        ordered = sorted(self.entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
        with (
            output_directory.explaining_full_disk(self.path.parent, self.nbytes),
            open(self.path, "wb", buffering=0) as out,
        ):
            written(out, memoryview(header(ordered, metadata)))
            for entry in ordered:
                self.spool.seek(entry.offset)
                left = entry.nbytes
                while left:
                    chunk = self.spool.read(min(left, CHUNK))
                    written(out, memoryview(chunk))
                    left -= len(chunk)
        output_directory.sync(self.path)
        self.remove()

    def remove(self) -> None:
        """Forget what was spooled."""
        self.spool.close()
        self.spool_path.unlink(missing_ok=True)


def header(entries: list[Entry], metadata: dict[str, str]) -> bytes:
    """Return the header of a safetensors file that holds `entries` one after the other."""
    said: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.nbytes
        said[entry.name] = {
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(said, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    return len(text).to_bytes(8, "little") + text


def written(file: IO[bytes], content: memoryview) -> None:
    """Write all of `content`; a file that is not buffered may take less at once."""
    while content:
        content = content[file.write(content) :]

"""Write one safetensors file tensor by tensor, without keeping the tensors in memory."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from nearplane.export import output_directory
from nearplane.types import NearplaneError

SAFETENSORS_TYPES = {
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
HEADER_ALIGNMENT = 8  # the length of the header is a multiple of so many bytes
CHUNK_BYTES = 1 << 24  # copied at a time


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file; `offset` is its first byte in the spool file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class ShardWriter:
    """Writes one safetensors file: `add` its tensors, then `close`.

    The header of a safetensors file comes first and lists all tensors, so it can only be written at
    the end. Until then tensors lie in a spool file beside it, from which `close` copies them. The
    types with the most bytes a number come first, so that every tensor is aligned.
    """

    def __init__(self, path: Path):
        self.path = path
        self.spool_path = path.with_suffix(".spool")
        self.spool: IO[bytes] = open(self.spool_path, "w+b", buffering=0)  # noqa: SIM115
        self.entries: list[TensorEntry] = []
        self.nbytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor to the spool file; NearplaneError if safetensors has no such dtype."""
        if tensor.dtype not in SAFETENSORS_TYPES:
            raise NearplaneError(f"{name}: safetensors files hold no {tensor.dtype}")
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        with output_directory.explaining_full_disk(self.path.parent, tensor.nbytes):
            for chunk in flat.split(CHUNK_BYTES):
                write_all(self.spool, chunk.numpy().data)
        shape = tuple(tensor.shape)
        self.entries.append(TensorEntry(name, tensor.dtype, shape, self.nbytes, tensor.nbytes))
        self.nbytes += tensor.nbytes

    def close(self, metadata: dict[str, str]) -> None:
        """Write the safetensors file, wait until it is on disk, and delete the spool file."""
        ordered = sorted(self.entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
        with (
            output_directory.explaining_full_disk(self.path.parent, self.nbytes),
            open(self.path, "wb", buffering=0) as out,
        ):
            write_all(out, memoryview(header(ordered, metadata)))
            for entry in ordered:
                self.spool.seek(entry.offset)
                left = entry.nbytes
                while left:
                    chunk = self.spool.read(min(left, CHUNK_BYTES))
                    write_all(out, memoryview(chunk))
                    left -= len(chunk)
        output_directory.sync(self.path)
        self.remove()

    def remove(self) -> None:
        """Delete the spool file."""
        self.spool.close()
        self.spool_path.unlink(missing_ok=True)


def header(entries: list[TensorEntry], metadata: dict[str, str]) -> bytes:
    """Return the header of a safetensors file that holds `entries` one after the other."""
    fields: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.nbytes
        fields[entry.name] = {
            "dtype": SAFETENSORS_TYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_all(file: IO[bytes], content: memoryview) -> None:
    """Write all of `content`; `write` of an unbuffered file may write only a part of it."""
    while content:
        content = content[file.write(content) :]

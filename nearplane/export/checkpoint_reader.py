"""Read a checkpoint directory tensor by tensor, and check it.

The files may come from an attacker: no name may lead out of the directory, sizes are checked before
memory is allocated, and whatever is wrong raises a NearplaneError that names the file.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr
from typing import Any

import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nearplane import codes
from nearplane.export import checkpoint_format as fmt
from nearplane.export import output_directory
from nearplane.export.record_check import check_record
from nearplane.types import NearplaneError, first_line

# safetensors' names of the types that weights are stored in
FLOAT_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint: its configuration, and which file holds which tensor.

    - `layers`: name of each compressed layer -> its bytes, rows, columns and certificate.
    - `file_of`: name of each tensor -> name of the safetensors file that holds it.
    """

    directory: Path
    config: dict[str, Any]
    layers: dict[str, dict[str, Any]]
    file_of: dict[str, str]

    def check_files(self) -> None:
        """Raise NearplaneError unless every file is there and as long as its header says."""
        for file in sorted(set(self.file_of.values())):
            tensors_in(self.directory / file)

    def tensor(self, name: str) -> Tensor:
        """Return one tensor; its file is memory-mapped, so that only this tensor is read."""
        if name not in self.file_of:
            raise NearplaneError(f"{self.directory}: there is no tensor {name!r}")
        with _safetensors_file(self.directory / self.file_of[name]) as shard:
            return shard.get_tensor(name)

    def stored_dtype(self) -> torch.dtype | None:
        """Return the dtype of the largest floating-point tensor; None if there is none."""
        sizes: dict[torch.dtype, int] = {}
        for file in sorted(set(self.file_of.values())):
            with _safetensors_file(self.directory / file) as shard:
                for name in shard.keys():  # noqa: SIM118
                    part = shard.get_slice(name)
                    dtype = FLOAT_TYPES.get(part.get_dtype())
                    if dtype is not None:
                        sizes[dtype] = max(sizes.get(dtype, 0), math.prod(part.get_shape()))
        return max(sizes, key=sizes.__getitem__, default=None)

    def record(self, layer: str) -> UInt8[Tensor, " bytes"]:
        """Return the record of a layer after checking its checksum, its length and its shape."""
        record = self.tensor(layer + fmt.RECORD)
        check_record(record, self.layers[layer], f"{self.directory}: {layer}")
        return record

    def records(self) -> Iterator[tuple[str, UInt8[Tensor, " bytes"]]]:
        """Yield the name and the checked record of every compressed layer, one at a time."""
        for layer in self.layers:
            yield layer, self.record(layer)


def open_checkpoint(directory: str | Path) -> Checkpoint:
    """Return the checkpoint in `directory`; NearplaneError if it does not hold one."""
    directory = Path(directory)
    config = read_config(directory)
    layers = layers_of(config, directory)
    return Checkpoint(directory, config, layers, locate_tensors(directory))


def read_config(directory: Path) -> dict[str, Any]:
    """Return config.json of a checkpoint; NearplaneError if `directory` does not hold one."""
    if not directory.is_dir():
        raise NearplaneError(f"{directory} is no directory")
    if output_directory.is_partial(directory):
        raise NearplaneError(f"{directory} is what an interrupted run left, not a checkpoint")
    if not (directory / fmt.CONFIG).is_file():
        raise NearplaneError(f"{directory} holds no {fmt.CONFIG}: it is not a checkpoint")
    config = read_json(directory / fmt.CONFIG)
    if config.get(fmt.OTHER_WEIGHTS) is not None or (directory / fmt.ADAPTER).exists():
        raise NearplaneError(f"{directory} names weights that are not a checkpoint's own")
    return config


def layers_of(config: dict[str, Any], directory: Path) -> dict[str, dict[str, Any]]:
    """Return name -> bytes, rows, columns and certificate of the layers that config.json lists."""
    source = str(directory / fmt.CONFIG)
    return fmt.check_quantization_config(config.get("quantization_config"), source)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; NearplaneError if there is none."""
    try:
        value = json.loads(path.read_bytes())
    # ValueError covers invalid JSON, invalid UTF-8 and integers with too many digits
    except (OSError, ValueError, RecursionError) as error:
        raise NearplaneError(f"{path} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise NearplaneError(f"{path} holds no JSON object")
    return value


def tensors_in(path: Path) -> dict[str, list[int]]:
    """Return the name and shape of every tensor in a safetensors file."""
    with _safetensors_file(path) as shard:
        return {name: shard.get_slice(name).get_shape() for name in shard.keys()}  # noqa: SIM118


def check_layers(directory: str | Path) -> list[str]:
    """Return one sentence for everything that is wrong with the tensors; [] if nothing is.

    Every record is decoded, so this takes as long as dequantizing the whole model.
    """
    problems: list[str] = []
    with _collecting_errors(problems):
        checkpoint = open_checkpoint(directory)
        problems += _unlisted_records(checkpoint)
        for file in sorted(set(checkpoint.file_of.values())):
            with _collecting_errors(problems):
                problems += _index_mismatches(checkpoint, file)
        for layer in checkpoint.layers:
            with _collecting_errors(problems):
                _decode(checkpoint, layer)
    return problems


@contextmanager
def _collecting_errors(problems: list[str]) -> Iterator[None]:
    """Append the message of a NearplaneError to `problems` instead of raising it."""
    try:
        yield
    except NearplaneError as error:
        problems.append(str(error))


def _decode(checkpoint: Checkpoint, layer: str) -> None:
    """Raise NearplaneError unless the record of `layer` can be decoded."""
    record = checkpoint.record(layer)
    try:
        codes.unpack(record)
    except codes.CorruptError as error:
        raise NearplaneError(f"{checkpoint.directory}: {layer}: {error}") from error


def _index_mismatches(checkpoint: Checkpoint, file: str) -> list[str]:
    """Return one sentence for every tensor that is only in the index or only in `file`."""
    promised = {name for name, holder in checkpoint.file_of.items() if holder == file}
    present = tensors_in(checkpoint.directory / file).keys()
    missing = [f"{file} lacks the tensor {name!r}" for name in sorted(promised - present)]
    return missing + [f"{file} holds {n!r}, not in the index" for n in sorted(present - promised)]


def _unlisted_records(checkpoint: Checkpoint) -> list[str]:
    """Return one sentence for every record of a layer that config.json does not list."""
    stored = {name for name in checkpoint.file_of if name.endswith(fmt.RECORD)}
    known = {layer + fmt.RECORD for layer in checkpoint.layers}
    return [f"{name} is in no layer of {fmt.CONFIG}" for name in sorted(stored - known)]


def locate_tensors(directory: Path) -> dict[str, str]:
    """Return tensor -> file; from the index if there is one, else from model.safetensors."""
    index, single = directory / fmt.INDEX, directory / fmt.SINGLE
    if not index.is_file():
        return _with_checked_names(dict.fromkeys(tensors_in(single), fmt.SINGLE), single)
    if single.exists():
        # readers differ in which of the two they prefer
        raise NearplaneError(f"{directory} holds both {fmt.INDEX} and {fmt.SINGLE}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise NearplaneError(f"{index} has no weight_map")
    for name, file in weight_map.items():
        # "each SHARD MUST be a plain file name"
        plain = isinstance(file, str) and fmt.is_safe_path(file) and "/" not in file
        if not plain or not file.endswith(".safetensors"):
            raise NearplaneError(
                f"{index} puts {repr(name)} in {repr(file)}, which is no shard's name"
            )
    return _with_checked_names(weight_map, index)


def _with_checked_names(file_of: dict[str, str], source: Path) -> dict[str, str]:
    """Return `file_of`; NearplaneError if the name of a tensor is not printable or is too long."""
    for name in file_of:
        if not fmt.is_name(name):
            raise NearplaneError(f"{source}: {repr(name)} is no tensor's name")
    return file_of


@contextmanager
def _safetensors_file(path: Path) -> Iterator[Any]:
    """Open a safetensors file; whatever is wrong with it raises NearplaneError."""
    try:
        # opening a named pipe would wait for ever
        if path.exists() and not path.is_file():
            raise NearplaneError(f"{path} cannot be read: it is no regular file")
        with safe_open(path, framework="pt") as shard:
            yield shard
    # the last four are raised for shapes and types that safetensors allows and torch does not
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise NearplaneError(f"{path} cannot be read: {first_line(error)}") from error

"""Check that a model's safetensors files are whole and fit its config.json.

Errors name the damaged file, so that it alone can be downloaded again.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from reprlib import repr

import torch
from safetensors import SafetensorError, safe_open

from nearplane.model.untrusted_files import check_numbers
from nearplane.types import NearplaneError, first_line

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

LONGEST_NAME = 1000  # characters

Shapes = dict[str, list[int]]


def read_shapes(directory: Path) -> dict[str, Shapes]:
    """Return file -> tensor -> shape; NearplaneError names a file that is damaged or missing."""
    if (directory / SINGLE).exists():
        return {SINGLE: shapes_in(directory / SINGLE)}
    if not (directory / INDEX).exists():
        raise NearplaneError(f"{directory} holds neither {SINGLE} nor {INDEX}")
    promised = read_index(directory / INDEX)
    found = {file: shapes_in(directory / file) for file in sorted(set(promised.values()))}
    for name, file in promised.items():
        if name not in found[file]:
            raise NearplaneError(f"{directory / file} lacks the tensor {name!r}, see {INDEX}")
    return found


def read_index(path: Path) -> dict[str, str]:
    """Return tensor -> file, all of them plain names of files beside the index."""
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise NearplaneError(f"{path} cannot be read as JSON: {first_line(error)}") from error
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files:
        raise NearplaneError(f"{path} has no weight_map")
    for name, file in files.items():
        if not name.isprintable() or len(name) > LONGEST_NAME:
            raise NearplaneError(f"{path}: {repr(name)} is no tensor's name")
        plain = isinstance(file, str) and file.isprintable() and Path(file).name == file
        if not plain or not file.endswith(".safetensors"):
            raise NearplaneError(
                f"{path} puts {repr(name)} in {repr(file)}, which is no shard's name"
            )
    return files


def shapes_in(path: Path) -> Shapes:
    """Return tensor -> shape of one file, whose header is checked against its size."""
    try:
        if not path.is_file():
            raise NearplaneError(f"{path} is missing")
        with safe_open(path, framework="pt") as shard:
            return {name: shard.get_slice(name).get_shape() for name in shard.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise NearplaneError(f"{path} is damaged: {first_line(error)}") from error


def check_fit(files: dict[str, Shapes], empty: torch.nn.Module) -> None:
    """Raise NearplaneError if the configuration asks for other shapes, or more, than files hold.

    - `empty`: the model built from the configuration, on the meta device.
    """
    stored = {name: shape for shapes in files.values() for name, shape in shapes.items()}
    file_of = {name: file for file, shapes in files.items() for name in shapes}
    for name, parameter in empty.named_parameters():
        if name in stored and stored[name] != list(parameter.shape):
            raise NearplaneError(
                f"{file_of[name]} holds {name!r} of {stored[name]}, where config.json asks for "
                f"{list(parameter.shape)}"
            )
    check_numbers(empty, stored.values())


def largest_weights(directory: Path, names: Iterable[str]) -> Iterator[tuple[str, float]]:
    """Yield the largest magnitude of each of these tensors that the files hold, one at a time."""
    wanted = set(names)
    for file, shapes in read_shapes(directory).items():
        with safe_open(directory / file, framework="pt") as shard:
            for name in wanted & shapes.keys():
                yield name, float(shard.get_tensor(name).abs().max())

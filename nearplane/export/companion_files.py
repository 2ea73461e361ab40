"""The files of the source model that are copied into the checkpoint unchanged."""

import json
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from nearplane.export.checkpoint_format import is_safe_path
from nearplane.model.open_model import OpenModel
from nearplane.types import NearplaneError

# of the tokenizer, processors, generation and chat, of whatever name, and what licences ask for
PATTERNS = (
    "*.json",
    "*prompt*",
    "*PROMPT*",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "tokenizer*",
    "vocab*",
    "merges*",
    "chat_template*",
    "additional_chat_templates/*",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
    "*.py",  # the code of a model that needs trust_remote_code
)
# what a checkpoint has of its own, and what says where the source's weights are
OWN = (
    "config.json",
    "report.json",
    "report.html",
    "*.index.json",
    "adapter_config.json",
    "SHA256SUMS",
)
# the source's weights, in any form; nobody expects them in the checkpoint
WEIGHTS = (
    "*.safetensors",
    "*.bin",
    "*.gguf",
    "*.pt",
    "*.pth",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.ot",
)

# the same weights for other programs
OTHER_FORMS = ("*model*.bin", "tf_model.h5", "flax_model.msgpack", "*.onnx", "rust_model.ot")
OTHER_FORMS += ("consolidated*", "*.gguf", "original/*")


def companion_files(source: str | Path) -> dict[str, Path]:
    """Return relative name -> path of the tokenizer, processor, licence and code files.

    NearplaneError if `source` is not found, or if a file is a link out of the model's directory.

    - `source`: the model's directory, or its name on the Hugging Face hub.
    """
    directory = Path(source).expanduser()
    if not directory.is_dir():
        directory = _downloaded(str(source))
    paths = [path for pattern in PATTERNS for path in directory.glob(pattern) if path.is_file()]
    paths = [path for path in paths if not _matches(path, (*OWN, *WEIGHTS))]
    for path in paths:
        _check_inside(path, directory)
        if not is_safe_path(path.relative_to(directory).as_posix()):
            raise NearplaneError(
                f"{str(path)!r} has a name that a checkpoint cannot hold: rename it"
            )
    return {path.relative_to(directory).as_posix(): path for path in sorted(paths)}


def files_left_behind(source: str | Path, companions: Iterable[str]) -> list[str]:
    """Return the names of files in a model's directory that are not read nor copied, sorted.

    Of a folder of which nothing is copied, it is the folder's. Hidden files are not among them; of
    a name on the hub nothing is known, and [] returned.

    - `companions`: the relative names that `companion_files` returned.
    """
    directory = Path(source).expanduser()
    if not directory.is_dir():
        return []
    known = {*companions, *read_weights(directory)}
    folders = {name.rpartition("/")[0] for name in known}
    left = set()
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        parts = name.split("/")
        if path.is_dir() or name in known or any(part.startswith(".") for part in parts):
            continue
        if len(parts) == 1 and _matches(path, (*OWN, *OTHER_FORMS)):
            continue
        # the first folder of which nothing is copied stands for all in it
        outer = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        left.add(next((folder for folder in outer if folder not in folders), name))
    return sorted(left)


def read_weights(directory: Path) -> set[str]:
    """Return the names of the weight files in a directory that transformers reads."""
    names = {path.name for path in directory.glob("*.safetensors")}
    for index in directory.glob("*.safetensors.index.json"):
        try:
            return set(json.loads(index.read_bytes())["weight_map"].values())
        # whoever opens the model says what is wrong with it
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return names
    return {"model.safetensors"} if "model.safetensors" in names else names


def _matches(path: Path, patterns: tuple[str, ...]) -> bool:
    """Whether a file's name fits one of some patterns."""
    return any(fnmatch(path.name, pattern) for pattern in patterns)


def _check_inside(path: Path, directory: Path) -> None:
    """Raise NearplaneError if `path` links out of the model: a private file could be published.

    In the cache of huggingface_hub, files are links to `blobs`, a folder beside `snapshots`.
    """
    root = directory.resolve()
    allowed = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    if not any(path.resolve().is_relative_to(parent) for parent in allowed):
        raise NearplaneError(
            f"{path} is a link out of its model's directory: copy what it points at there, if it "
            "is to become a part of the checkpoint"
        )


def _downloaded(name: str) -> Path:
    try:
        return Path(
            snapshot_download(name, allow_patterns=list(PATTERNS), ignore_patterns=list(WEIGHTS))
        )
    # the errors of huggingface_hub are subclasses of these two
    except (OSError, ValueError) as error:
        raise NearplaneError(f"{name} is no directory and no model on the hub: {error}") from error


def stored_companions(source: OpenModel, scratch: Path) -> dict[str, Any]:
    """Return name -> path of the tokenizer's and other files that are copied to the checkpoint.

    - `scratch`: an empty directory, to which the tokenizer of a GGUF file is saved.

    Raises NearplaneError if that tokenizer cannot be read.
    """
    if not source.name.endswith(".gguf"):
        return companion_files(source.name)
    if source.tokenizer is None:
        raise NearplaneError(f"the tokenizer of {source.name} cannot be read")
    source.tokenizer.save_pretrained(scratch)
    return {path.name: path for path in scratch.iterdir()}

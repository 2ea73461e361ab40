"""The files of the source model that are copied into the checkpoint unchanged."""

from pathlib import Path

from huggingface_hub import snapshot_download

from nearplane.types import NearplaneError

PATTERNS = (
    "generation_config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
    "*.py",  # the code of a model that needs trust_remote_code
)


def companion_files(source: str | Path) -> dict[str, Path]:
    """Return relative name -> path of the generation config, tokenizer, licence and code files.

    NearplaneError if `source` is not found, or if a file is a link out of the model's directory.

    - `source`: the model's directory, or its name on the Hugging Face hub.
    """
    directory = Path(source).expanduser()
    if not directory.is_dir():
        directory = _downloaded(str(source))
    paths = [path for pattern in PATTERNS for path in directory.glob(pattern) if path.is_file()]
    for path in paths:
        _check_inside(path, directory)
    return {path.relative_to(directory).as_posix(): path for path in sorted(paths)}


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
        return Path(snapshot_download(name, allow_patterns=list(PATTERNS)))
    # the errors of huggingface_hub are subclasses of these two
    except (OSError, ValueError) as error:
        raise NearplaneError(f"{name} is no directory and no model on the hub: {error}") from error

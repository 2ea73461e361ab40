"""The files of a source model that its checkpoint takes along unchanged."""

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
    "*.py",  # of a model that is not part of transformers
)


def companion_files(source: str | Path) -> dict[str, Path]:
    """Return name -> path of generation config, tokenizer, chat templates, licence and code.

    - `source`: the model's directory, or its name on the hub.
    """
    directory = Path(source).expanduser()
    if not directory.is_dir():
        directory = _downloaded(str(source))
    paths = [path for pattern in PATTERNS for path in directory.glob(pattern) if path.is_file()]
    for path in paths:
        _check_inside(path, directory)
    return {path.relative_to(directory).as_posix(): path for path in sorted(paths)}


def _check_inside(path: Path, directory: Path) -> None:
    """Raise NearplaneError for a link out of the model: its target would be copied and published.

    In the hub's cache, files are links to the blobs two folders above.
    """
    root = directory.resolve()
    allowed = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    if not any(path.resolve().is_relative_to(place) for place in allowed):
        raise NearplaneError(
            f"{path} is a link out of its model's directory: copy what it points at there, if it "
            "is to become a part of the checkpoint"
        )


def _downloaded(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=list(PATTERNS)))
    # huggingface_hub's own errors are of both kinds
    except (OSError, ValueError) as error:
        raise NearplaneError(f"{name} is no directory and no model on the hub: {error}") from error

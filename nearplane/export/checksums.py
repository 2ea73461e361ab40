"""Write and verify SHA256SUMS, as docs/formats/checkpoint.md defines it."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from nearplane.export.checkpoint_format import is_safe_path
from nearplane.types import NearplaneError

SUMS = "SHA256SUMS"


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def bytes_hash(content: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def listed_files(directory: Path) -> list[str]:
    """Return the paths of all files that SHA256SUMS lists, in its order: by their UTF-8 bytes."""
    return sorted(_paths(directory), key=str.encode)


def sums_text(hashes: dict[str, str]) -> bytes:
    """Return the content of SHA256SUMS; `hashes` maps path to hash."""
    # "Lines rise in the bytes of PATH"
    names = sorted(hashes, key=str.encode)
    return "".join(f"{hashes[name]}  {name}\n" for name in names).encode()


def stored_sums(path: Path) -> dict[str, str]:
    """Return name -> hash, as a file SHA256SUMS lists them."""
    return _parsed(path.read_bytes())


def verify_sums(directory: str | Path) -> list[str]:
    """Return one sentence for every file that does not match SHA256SUMS; [] if all do."""
    directory = Path(directory)
    if not directory.is_dir():
        raise NearplaneError(f"{directory} is no directory")
    path = directory / SUMS
    if not path.is_file():
        return [f"{SUMS} is missing"]
    try:
        stored = path.read_bytes()
        names = listed_files(directory)
        # reading a named pipe or a device might never end
        special = [name for name in names if not (directory / name).is_file()]
        if special:
            return [f"{name!r} is no regular file" for name in special]
        actual = {name: file_hash(directory / name) for name in names}
    except UnicodeEncodeError:
        return ["a file's name is not UTF-8"]
    except OSError as error:
        return [f"a file cannot be read: {error}"]
    if stored == sums_text(actual):
        return []
    return _differences(stored, actual) or [f"{SUMS} is not in its canonical form"]


def _paths(directory: Path) -> Iterator[str]:
    """Yield the relative paths of all files but SHA256SUMS and hidden ones (.NAME)."""
    # files may be symbolic links, as in the cache of huggingface_hub; links to folders are skipped
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            name = (Path(folder) / file).relative_to(directory).as_posix()
            if name != SUMS and not file.startswith("."):
                yield name


def _parsed(stored: bytes) -> dict[str, str]:
    lines = [line.partition("  ") for line in stored.decode(errors="replace").splitlines()]
    return {name: digest for digest, _, name in lines}


def _differences(stored: bytes, actual: dict[str, str]) -> list[str]:
    expected = _parsed(stored)
    names = sorted(expected.keys() | actual.keys())
    return [problem for name in names if (problem := _problem(name, expected, actual))]


def _problem(name: str, expected: dict[str, str], actual: dict[str, str]) -> str:
    if name not in actual:
        return f"{name!r} is listed in {SUMS} but missing"
    if name not in expected:
        reason = "" if is_safe_path(name) else ", and a checkpoint has no such name"
        return f"{name!r} is not listed in {SUMS}{reason}"
    return "" if actual[name] == expected[name] else f"{name!r} differs from its sum in {SUMS}"

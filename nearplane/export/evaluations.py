"""Append what was measured of a checkpoint to its report.json, whose sum follows it."""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nearplane.export import checkpoint_format as fmt
from nearplane.export import checksums
from nearplane.export.checkpoint_reader import read_json
from nearplane.export.output_lock import OutputLock
from nearplane.report.reading import REPORT
from nearplane.types import NearplaneError

EVALUATIONS = "evaluations"
PATIENCE_S = 10.0  # for another process that appends at this moment, which takes milliseconds


def append_evaluations(directory: str | Path, entries: Sequence[dict[str, Any]]) -> None:
    """Append `entries` to the list `evaluations` of a checkpoint's report.json.

    SHA256SUMS gets the sum of the new report.json; sums of other files stay as they are. Both files
    are written whole under hidden names before the first one is renamed.

    Raises NearplaneError, with the files as they were, if there is no report.json, if it is a link
    or damaged, or if the directory cannot be written.
    """
    path = Path(directory) / REPORT
    if path.is_symlink() or not path.is_file():
        reason = "it is a link to another place" if path.is_symlink() else "there is none"
        raise NearplaneError(f"{path} cannot be added to: {reason}")
    try:
        lock = patiently_locked(path)
    except OSError as error:
        raise NearplaneError(f"{path} cannot be written: {error.strerror or error}") from error
    try:
        replace_together(with_entries(path, entries))
    except OSError as error:
        raise NearplaneError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        lock.release()


def patiently_locked(path: Path) -> OutputLock:
    """Return a lock on a file that was free within `PATIENCE_S`."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return OutputLock(path)
        except NearplaneError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def with_entries(path: Path, entries: Sequence[dict[str, Any]]) -> dict[Path, bytes]:
    """Return file -> new content: of report.json, and of SHA256SUMS where there is one."""
    content = read_json(path)
    before = content.get(EVALUATIONS, [])
    if not isinstance(before, list):
        raise NearplaneError(f"{path} has no list of {EVALUATIONS}")
    made = fmt.json_bytes(content | {EVALUATIONS: [*before, *map(fmt.rounded, entries)]})
    sums = path.with_name(checksums.SUMS)
    if not sums.exists():
        return {path: made}
    listed = f"{checksums.file_hash(path)}  {REPORT}\n".encode()
    stored = sums.read_bytes()
    # a sum that is wrong already must not be made right
    if b"\n" + listed not in b"\n" + stored:
        raise NearplaneError(f"{path} differs from its sum in {checksums.SUMS}")
    new = f"{checksums.bytes_hash(made)}  {REPORT}\n".encode()
    return {path: made, sums: stored.replace(listed, new)}


def replace_together(contents: dict[Path, bytes]) -> None:
    """Write every file whole under a hidden name beside it, then rename one after the other."""
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in contents}
    try:
        for path, content in contents.items():
            temporary[path].unlink(missing_ok=True)  # of a process of this number that was killed
            with temporary[path].open("xb") as file:
                shutil.copymode(path, temporary[path])
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            temporary[path].replace(path)
    finally:
        for left in temporary.values():
            left.unlink(missing_ok=True)

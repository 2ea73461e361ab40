"""Make an output directory appear complete or not at all.

It is filled under a temporary name beside OUT, and renamed to OUT at the end.
"""

import errno
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nearplane.export.output_lock import OutputLock
from nearplane.types import NearplaneError

GB = 1e9
PARTIAL_MARK = ".partial-"  # in the name of a directory that is still being filled


def resolved_output(out: str | Path) -> Path:
    """Return OUT as an absolute path; NearplaneError if a checkpoint cannot be put there."""
    path = Path(out).expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise NearplaneError(f"{out} is a file: name a new or empty directory")
    if path.is_dir() and any(path.iterdir()):
        raise NearplaneError(f"{out} is not empty: name a new or empty directory")
    if os.path.ismount(path):
        # renaming onto a mount point fails, and that would only happen after hours of work
        raise NearplaneError(f"{out} is a mount point: name a directory inside it")
    return path


def create(target: Path) -> tuple[Path, OutputLock]:
    """Return a new directory beside `target` to fill, and the lock that keeps other writers away.

    Directories that dead processes left behind are removed. Raises NearplaneError if another
    process writes `target`.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = OutputLock(target)
    except OSError as error:
        raise NearplaneError(f"cannot write in {target.parent}: {error.strerror}") from error
    try:
        # the process that held the lock before may have written `target`
        resolved_output(target)
        remove_stale(target)
        check_other_hosts(target)
        owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        partial = target.parent / f"{_prefix(target)}{owner}"
        partial.mkdir()
        return partial, lock
    except OSError as error:
        lock.release()
        raise NearplaneError(f"cannot write in {target.parent}: {error.strerror}") from error
    except BaseException:
        lock.release()
        raise


def check_other_hosts(target: Path) -> None:
    """Raise NearplaneError if a partial directory was made by a process on another host.

    Locks may not work across hosts, and it cannot be seen whether a process of another host runs.
    """
    for path, host, pid in _partials(target):
        if host != socket.gethostname():
            raise NearplaneError(
                f"{target} may still be written by process {pid} on {host!r}, which cannot be seen "
                f"from here: if it has ended, remove {path}"
            )


def remove_stale(target: Path) -> None:
    """Remove the partial directories of processes of this host that are dead."""
    for path, host, pid in _partials(target):
        if host == socket.gethostname() and not _is_alive(pid):
            shutil.rmtree(path, ignore_errors=True)


def is_partial(directory: Path) -> bool:
    """Whether `directory` is one that a writer is filling, or was killed while filling."""
    return directory.name.startswith(".") and PARTIAL_MARK in directory.name


def rename_into_place(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`; both are on disk when this returns.

    - `target`: does not exist, or is an empty directory.
    """
    sync(partial)
    try:
        os.rename(partial, target)
    except OSError as error:
        raise NearplaneError(f"cannot put the checkpoint at {target}: {error.strerror}") from error
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until `path`, a file or the list of names of a directory, is on disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network file systems cannot sync a directory; the run should not fail for that
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def check_space(out: str | Path, needed_bytes: int) -> None:
    """Raise NearplaneError if the disk that OUT lies on has less than `needed_bytes` free."""
    existing = Path(out).expanduser().resolve()
    while not existing.exists():
        existing = existing.parent
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise NearplaneError(
            f"{out} needs {needed_bytes / GB:.2f} GB, but {existing} has "
            f"{free_bytes / GB:.2f} GB free"
        )


@contextmanager
def explaining_full_disk(directory: Path, needed_bytes: int) -> Iterator[None]:
    """Turn the error of a full disk into a NearplaneError that says what was needed and is free."""
    try:
        yield
    except Exception as error:
        # safetensors raises an error of its own, with the system's error number in its text
        number = getattr(error, "errno", None)
        full = number in (errno.ENOSPC, errno.EDQUOT) or f"os error {errno.ENOSPC}" in str(error)
        if not full:
            raise
        free_bytes = shutil.disk_usage(directory).free
        raise NearplaneError(
            f"the disk of {directory.parent} is full: {needed_bytes / GB:.3f} GB more were to be "
            f"written and {free_bytes / GB:.3f} GB are free"
        ) from error


def _prefix(target: Path) -> str:
    return f".{target.name}{PARTIAL_MARK}"


def _partials(target: Path) -> list[tuple[Path, str, int]]:
    """Return the partial directories of `target`, with host name and process id of their makers."""
    found = []
    for path in sorted(target.parent.iterdir()):
        owner = path.name.removeprefix(_prefix(target)).rsplit("-", 2)
        if path.name.startswith(_prefix(target)) and len(owner) == 3 and owner[1].isdecimal():
            found.append((path, owner[0], int(owner[1])))
    return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def replace_files(contents: dict[Path, bytes]) -> None:
    """Write files that readers see as they were or as they are, and never in between.

    All are whole under hidden names beside them before the first one is renamed.
    """
    own = f"{os.getpid()}-{secrets.token_hex(4)}"
    partial = {path: path.with_name(f".{path.name}.{own}") for path in contents}
    try:
        for path, content in contents.items():
            partial[path].write_bytes(content)
            if path.exists():
                shutil.copymode(path, partial[path])
            sync(partial[path])
        for path in contents:
            partial[path].replace(path)
            sync(path.parent)
    finally:
        for left in partial.values():
            left.unlink(missing_ok=True)

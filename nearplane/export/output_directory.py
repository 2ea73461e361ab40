"""A directory that appears whole or not at all: filled beside its place, then renamed into it."""

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
MARK = ".partial-"


def resolved_output(out: str | Path) -> Path:
    """Return OUT as an absolute path; NearplaneError if a checkpoint cannot be put there."""
    path = Path(out).expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise NearplaneError(f"{out} is a file: name a new or empty directory")
    if path.is_dir() and any(path.iterdir()):
        raise NearplaneError(f"{out} is not empty: name a new or empty directory")
    if os.path.ismount(path):
        # nothing can be renamed onto a mount, which would show only after hours of work
        raise NearplaneError(f"{out} is a mount point: name a directory inside it")
    return path


def create(target: Path) -> tuple[Path, OutputLock]:
    """Return a new, empty directory beside `target`, and the lock that keeps others from it.

    Those of dead processes are removed. Raises NearplaneError if another process writes `target`.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = OutputLock(target)
    except OSError as error:
        raise NearplaneError(f"cannot write in {target.parent}: {error.strerror}") from error
    try:
        # who held the lock until now may have finished
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
    """Raise NearplaneError if a writer on another host left a directory, or still fills it.

    Locks of network file systems may not reach as far, and processes of other hosts cannot be seen.
    """
    for path, host, pid in _partials(target):
        if host != socket.gethostname():
            raise NearplaneError(
                f"{target} may still be written by process {pid} on {host!r}, which cannot be seen "
                f"from here: if it has ended, remove {path}"
            )


def remove_stale(target: Path) -> None:
    """Remove what killed writers of this host left beside `target`."""
    for path, host, pid in _partials(target):
        if host == socket.gethostname() and not _is_alive(pid):
            shutil.rmtree(path, ignore_errors=True)


def is_partial(directory: Path) -> bool:
    """Whether a writer filled `directory` and did not come to rename it."""
    return directory.name.startswith(".") and MARK in directory.name


def appear(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`, which may be an empty directory, durably."""
    sync(partial)
    try:
        os.rename(partial, target)
    except OSError as error:
        raise NearplaneError(f"cannot put the checkpoint at {target}: {error.strerror}") from error
    sync(target.parent)


def sync(path: Path) -> None:
    """Return when `path`, a file or a directory's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network file systems cannot sync a directory, which is no reason to lose the work
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def check_space(out: str | Path, needed_bytes: int) -> None:
    """Raise NearplaneError when the disk of OUT has less than `needed_bytes` free."""
    place = Path(out).expanduser().resolve()
    while not place.exists():
        place = place.parent
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < needed_bytes:
        raise NearplaneError(
            f"{out} needs {needed_bytes / GB:.2f} GB, but {place} has {free_bytes / GB:.2f} GB free"
        )


@contextmanager
def explaining_full_disk(directory: Path, needed_bytes: int) -> Iterator[None]:
    """Turn "no space left" while writing `needed_bytes` into a NearplaneError with numbers."""
    try:
        yield
    except Exception as error:
        # safetensors wraps the system's error in one of its own, with the number in its text
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
    return f".{target.name}{MARK}"


def _partials(target: Path) -> list[tuple[Path, str, int]]:
    """Return the partial directories of `target`, with the host and the process that made each."""
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

"""A file lock that lets only one process at a time write an output directory."""

import errno
import json
import os
import socket
from pathlib import Path
from typing import BinaryIO

from nearplane.types import NearplaneError

try:
    import fcntl
except ImportError:  # on Windows nothing is locked; the names of partial directories still warn
    fcntl = None

MAX_OWNER_BYTES = 1000  # bytes of a lock file that are read
# the errors of file systems that cannot lock files
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class OutputLock:
    """Holds `.OUT.lock` beside OUT from its creation to `release`.

    The operating system frees the lock of a process that dies, however it dies, so that a lock file
    that is left behind locks nothing. The file names the owner's host and process, for people only.

    Raises NearplaneError, naming the owner, if another process holds the lock, or this one does.
    """

    def __init__(self, target: Path):
        self.path = target.parent / f".{target.name}.lock"
        self.file: BinaryIO | None = None
        while self.file is None:
            self.file = self._try_lock(target)
        self.file.truncate(0)
        self.file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
        self.file.flush()

    def release(self) -> None:
        """Free the lock; the file is removed first, while no other process can hold it."""
        if self.file is not None:
            self.path.unlink(missing_ok=True)
            self.file.close()
            self.file = None

    def _try_lock(self, target: Path) -> BinaryIO | None:
        """Return the open and locked file; None if its last owner removed it meanwhile."""
        # without O_NOFOLLOW, the target of a symbolic link would be overwritten
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        file = os.fdopen(os.open(self.path, flags, 0o666), "r+b", buffering=0)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _owner(file)
            file.close()
            raise NearplaneError(
                f"{target} is being written by {owner}: wait for it, or name another directory"
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                file.close()
                raise
        if _is_same(file, self.path):
            return file
        file.close()
        return None


def _owner(file: BinaryIO) -> str:
    """Return who holds the lock, as the lock file says."""
    try:
        owner = json.loads(file.read(MAX_OWNER_BYTES))
        return f"process {int(owner['pid'])} on {str(owner['host'])[:100]!r}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return "another process"


def _is_same(file: BinaryIO, path: Path) -> bool:
    """Whether `path` still is the open file, and not removed or replaced since."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False

"""One run at a time for an output directory: a lock that ends with its process."""

import errno
import json
import os
import socket
from pathlib import Path
from typing import BinaryIO

from nearplane.types import NearplaneError

try:
    import fcntl
except ImportError:  # where there is none, as on Windows, only names of partial directories tell
    fcntl = None

LONGEST_OWNER = 1000  # bytes of a lock file that are read
# file systems that know no locks
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class OutputLock:
    """Holds `.OUT.lock` beside OUT from its creation to `release`.

    The system takes the lock away from a process that dies in any way, so that a file that is left
    behind locks nothing. Its content, the owner's host and process, is only for people.

    Raises NearplaneError, naming the owner, if another process holds the lock, or this one does.
    """

    def __init__(self, target: Path):
        self.path = target.parent / f".{target.name}.lock"
        self.file: BinaryIO | None = None
        while self.file is None:
            self.file = self._locked(target)
        self.file.truncate(0)
        self.file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
        self.file.flush()

    def release(self) -> None:
        """Let the next one in; the file is removed first, while nobody else can hold it."""
        if self.file is not None:
            self.path.unlink(missing_ok=True)
            self.file.close()
            self.file = None

    def _locked(self, target: Path) -> BinaryIO | None:
        """Return the open, locked file; None if its owner removed it in between."""
        # not followed: a link here would be written to
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
    """Return who holds the lock, as its file says."""
    try:
        said = json.loads(file.read(LONGEST_OWNER))
        return f"process {int(said['pid'])} on {str(said['host'])[:100]!r}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return "another process"


def _is_same(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False

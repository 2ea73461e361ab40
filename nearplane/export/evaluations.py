"""Append what was measured of a checkpoint to its report.json, whose sum follows it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nearplane.export import checkpoint_format as fmt
from nearplane.export import checksums
from nearplane.export.checkpoint_reader import read_json
from nearplane.export.output_directory import replace_files
from nearplane.export.output_lock import OutputLock
from nearplane.export.report_page import with_sums
from nearplane.report.reading import REPORT, checked_run
from nearplane.report.report_page import PAGE, report_page
from nearplane.types import NearplaneError

EVALUATIONS = "evaluations"
PATIENCE_S = 10.0  # for another process that appends at this moment, which takes milliseconds


def append_evaluations(directory: str | Path, entries: Sequence[dict[str, Any]]) -> None:
    """Append `entries` to the list `evaluations` of a checkpoint's report.json.

    report.html and SHA256SUMS follow; sums of other files stay as they are. All of them are written
    whole under hidden names before the first one is renamed.

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
        replace_files(with_entries(path, entries))
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
    """Return file -> new content: of report.json, its page, and SHA256SUMS where there is one."""
    content = read_json(path)
    before = content.get(EVALUATIONS, [])
    if not isinstance(before, list):
        raise NearplaneError(f"{path} has no list of {EVALUATIONS}")
    content |= {EVALUATIONS: [*before, *map(fmt.rounded, entries)]}
    page = report_page(checked_run(content, str(path)), path.parent.resolve().name)
    made = {path: fmt.json_bytes(content), path.with_name(PAGE): page}
    sums = path.with_name(checksums.SUMS)
    # a sum that is wrong already must not be made right
    if sums.exists() and checksums.stored_sums(sums).get(REPORT) != checksums.file_hash(path):
        raise NearplaneError(f"{path} differs from its sum in {checksums.SUMS}")
    return with_sums(made)

"""Tell and finish an update of a checkpoint's report that was cut off between two of its files.

report.json, report.html and SHA256SUMS are written whole under hidden names and then renamed one by
one (`output_directory.replace_files`). A process that is killed in between leaves the new ones that
it did not come to: `.NAME.PID-RANDOM`.
"""

import os
import re
from pathlib import Path

from nearplane.export import checksums
from nearplane.export.output_directory import sync
from nearplane.report.reading import REPORT
from nearplane.report.report_page import PAGE

LEFT = re.compile(r"\.(report\.json|report\.html|SHA256SUMS)\.((\d+)-[0-9a-f]{8})")
NAMES = (REPORT, PAGE, checksums.SUMS)  # in the order of renaming


def interrupted_sentence(directory: str | Path) -> str:
    """Return what to do about an update that was cut off half done, or "" if there is none."""
    # of a process that still runs, the update is not cut off
    ended = [own for own in left_behind(Path(directory)) if not is_alive(int(own.split("-")[0]))]
    if not any(is_half_done(Path(directory), own) for own in ended):
        return ""
    return (
        f"an update of {directory}'s report was cut off between two files: nearplane report "
        f"{directory} finishes it"
    )


def finish_interrupted(directory: str | Path) -> str:
    """Finish updates that were cut off half done, and remove what others left behind.

    Returns a sentence on what was finished, or "". The directory's lock must be held.
    """
    directory, said = Path(directory), ""
    for own in left_behind(directory):
        if is_half_done(directory, own):
            for name in NAMES:
                left = hidden(directory, name, own)
                if left.is_file():
                    left.replace(directory / name)
            sync(directory)
            said = "an update of the report that had been cut off was finished"
        for name in NAMES:
            hidden(directory, name, own).unlink(missing_ok=True)
    return said


def left_behind(directory: Path) -> list[str]:
    """Return what tells apart the updates that left hidden files in a directory."""
    names = os.listdir(directory) if directory.is_dir() else []
    found = (LEFT.fullmatch(name) for name in sorted(names))
    return list(dict.fromkeys(each[2] for each in found if each))


def is_half_done(directory: Path, own: str) -> bool:
    """Whether the sums that an update left say that some of its files are in place, and not all.

    Those that are not in place must lie there whole.
    """
    new, old = hidden(directory, checksums.SUMS, own), directory / checksums.SUMS
    if not new.is_file() or not old.is_file():
        return False
    before, after = checksums.stored_sums(old), checksums.stored_sums(new)
    changed = [name for name in NAMES if before.get(name) != after.get(name)]
    placed = [name for name in changed if has_sum(directory / name, after.get(name))]
    others = [name for name in changed if name not in placed]
    return bool(placed) and all(has_sum(hidden(directory, n, own), after.get(n)) for n in others)


def hidden(directory: Path, name: str, own: str) -> Path:
    """Return the name under which a file was written before it was renamed."""
    return directory / f".{name}.{own}"


def has_sum(path: Path, digest: str | None) -> bool:
    """Whether a file is there and has this SHA-256."""
    return path.is_file() and not path.is_symlink() and checksums.file_hash(path) == digest


def is_alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True

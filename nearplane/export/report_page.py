"""Write report.html beside a checkpoint's report.json, whole or not at all."""

from pathlib import Path

from nearplane.export import checkpoint_format as fmt
from nearplane.export import checksums
from nearplane.export.checkpoint_reader import read_json
from nearplane.export.interrupted_update import (
    finish_interrupted,
    interrupted_sentence,
    left_behind,
)
from nearplane.export.output_directory import explaining_full_disk, replace_files
from nearplane.export.output_lock import OutputLock
from nearplane.report.reading import REPORT, checked_run, read_report
from nearplane.report.report_page import PAGE, report_page


def write_report_page(directory: str | Path, output: str | Path | None = None) -> Path:
    """Make the page of the report.json in a directory anew, and return its path.

    The line of report.html in SHA256SUMS follows, and no other one: damage elsewhere stays to be
    seen.

    - `output`: a file to write instead.

    Raises NearplaneError if report.json is not there or damaged.
    """
    directory = Path(directory)
    page = report_page(read_report(directory), directory.resolve().name)
    path = directory / PAGE if output is None else Path(output)
    write_pages(with_sums({path: page}) if output is None else {path: page})
    return path


def write_report_of(directory: Path, model: str, shown: str) -> None:
    """Let the report of a checkpoint name another model that it is of; its sums follow.

    - `shown`: the directory's name in the commands that the page shows.
    """
    content = read_json(directory / REPORT) | {"model": model}
    page = report_page(checked_run(content, REPORT), shown)
    write_pages(with_sums({directory / REPORT: fmt.json_bytes(content), directory / PAGE: page}))


def repaired(directory: str | Path, output: str | Path | None = None) -> str:
    """Finish an update of the report that was cut off; return a sentence if there was one.

    - `output`: a file elsewhere that the page is written to: then nothing is finished, only told.

    Raises NearplaneError if another process is writing the report.
    """
    said = interrupted_sentence(directory)
    if output is not None or not left_behind(Path(directory)):
        return said
    lock = OutputLock(Path(directory) / REPORT)
    try:
        return finish_interrupted(directory)
    finally:
        lock.release()


def write_pages(contents: dict[Path, bytes]) -> None:
    """Write files of one directory whole or not at all; NearplaneError if its disk is full."""
    with explaining_full_disk(next(iter(contents)).parent, sum(map(len, contents.values()))):
        replace_files(contents)


def with_sums(contents: dict[Path, bytes]) -> dict[Path, bytes]:
    """Return new contents of files of one directory, with its SHA256SUMS if it has any."""
    sums = next(iter(contents)).with_name(checksums.SUMS)
    if not sums.is_file():
        return contents
    hashes = {path.name: checksums.bytes_hash(content) for path, content in contents.items()}
    return contents | {sums: checksums.sums_text(checksums.stored_sums(sums) | hashes)}

"""Write report.html beside a checkpoint's report.json, whole or not at all."""

from pathlib import Path

from nearplane.export import checksums
from nearplane.export.output_directory import explaining_full_disk, replace_files
from nearplane.report.reading import read_report
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

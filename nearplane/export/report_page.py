"""Write report.html beside a checkpoint's report.json, whole or not at all."""

import os
import secrets
from pathlib import Path

from nearplane.export import checksums
from nearplane.export.output_directory import explaining_full_disk, sync
from nearplane.report.reading import read_report
from nearplane.report.report_page import PAGE, report_page


def write_report_page(directory: str | Path, output: str | Path | None = None) -> Path:
    """Make the page of the report.json in a directory anew, and return its path.

    Call it whenever report.json has changed. The line of report.html in SHA256SUMS follows, and no
    other one: damage elsewhere stays to be seen.

    - `output`: a file to write instead.

    Raises NearplaneError if report.json is not there or damaged.
    """
    directory = Path(directory)
    page = report_page(read_report(directory), directory.resolve().name)
    if output is not None:
        replace_file(Path(output), page)
        return Path(output)
    replace_file(directory / PAGE, page)
    sums = directory / checksums.SUMS
    if sums.is_file():
        lines = [line.partition("  ") for line in sums.read_text().splitlines()]
        hashes = {name: digest for digest, _, name in lines}
        replace_file(sums, checksums.sums_text(hashes | {PAGE: checksums.bytes_hash(page)}))
    return directory / PAGE


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that readers see as it was or as it is, and never in between."""
    # hidden files are in no sums
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with explaining_full_disk(path.parent, len(content)):
            partial.write_bytes(content)
            sync(partial)
            partial.replace(path)
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)

"""The commands report and compare."""

from pathlib import Path
from typing import Annotated

import typer

from nearplane.cli.verify import Directory


def report(
    directory: Directory,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the page there")
    ] = None,
) -> None:
    """Write DIR/report.html, a page that shows what was done, and print what matters of it."""
    from nearplane.export.report_page import write_report_page
    from nearplane.pages.findings import advice
    from nearplane.pages.reading import read_report

    path = write_report_page(directory, output)
    for sentence in advice(read_report(Path(directory)), directory).sentences():
        typer.echo(sentence)
    typer.echo(f"{path}: {path.stat().st_size / 1e6:.2f} MB, open it in a browser")

"""The commands report and compare."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nearplane.cli.verify import Directory


def report(
    directory: Directory,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the page there, not into DIR"),
    ] = None,
) -> None:
    """Write DIR/report.html, a page that shows what was done, and print what matters of it."""
    from nearplane.export.report_page import write_report_page
    from nearplane.report.findings import advice
    from nearplane.report.reading import read_report

    path = write_report_page(directory, out)
    for sentence in advice(read_report(Path(directory)), directory).sentences():
        typer.echo(sentence)
    typer.echo(f"{path}: {path.stat().st_size / 1e6:.2f} MB, open it in a browser")


def compare(
    directories: Annotated[
        list[str], typer.Argument(metavar="DIR DIR..", help="Two or more checkpoints")
    ],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with charts, too")
    ] = None,
) -> None:
    """Print what differs between checkpoints: size, error, bits by kind, and measured quality."""
    from nearplane.export.report_page import write_pages
    from nearplane.report.compare_page import compare_page, named_runs
    from nearplane.report.reading import read_report

    runs = named_runs(directories, [read_report(Path(each)) for each in directories])
    print_comparison(runs)
    if html is not None:
        write_pages({html: compare_page(runs)})
        typer.echo(f"{html}: {html.stat().st_size / 1e6:.2f} MB, open it in a browser")


def print_comparison(runs: list[Any]) -> None:
    """Print a table of totals, one of kinds, and one of the layers that differ most."""
    from rich.table import Table

    from nearplane.cli.layer_tables import formatted, wide_console
    from nearplane.report.compare_page import by_kind, differing, totals

    names = [each.name for each in runs]
    sums = Table("", *names, box=None, pad_edge=False)
    for label, values in totals(runs):
        sums.add_row(label, *values)
    rates = Table("bits, median relative error", *names, box=None, pad_edge=False)
    for name, found in by_kind(runs):
        cells = (f"{k.bpw:.3f}, {formatted(k.median_loss, '.2e')}" if k else "-" for k in found)
        rates.add_row(name, *cells)
    layers = Table("relative errors that differ most", *names, box=None, pad_edge=False)
    for name, lines in differing(runs):
        layers.add_row(name, *(formatted(line.relative_loss, ".2e") for line in lines))
    console = wide_console()
    for table in (sums, rates, *([layers] if layers.row_count else [])):
        console.print(table)
        console.print()

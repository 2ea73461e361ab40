"""The commands report and compare."""

from collections.abc import Sequence
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
    from nearplane.export.report_page import repaired, write_report_page
    from nearplane.report.findings import advice
    from nearplane.report.reading import read_report

    if finished := repaired(directory, out):
        typer.echo(finished)
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
    from nearplane.export.interrupted_update import interrupted_sentence
    from nearplane.export.report_page import write_pages
    from nearplane.report.compare_page import compare_page, named_runs
    from nearplane.report.reading import read_report

    runs = named_runs(directories, [read_report(Path(each)) for each in directories])
    for sentence in filter(None, map(interrupted_sentence, directories)):
        typer.echo(f"warning: {sentence}", err=True)
    print_comparison(runs)
    if html is not None:
        write_pages({html: compare_page(runs)})
        typer.echo(f"{html}: {html.stat().st_size / 1e6:.2f} MB, open it in a browser")


def print_comparison(runs: list[Any]) -> None:
    """Print a table of totals, what does not compare, and tables of kinds and of layers."""
    from nearplane.report.compare_page import by_kind, differing, totals, warnings

    print_columns("", runs, totals(runs))
    for sentence in warnings(runs):
        typer.echo(f"warning: {sentence}\n")
    kinds = by_kind(runs)
    rates = [(name, numbers(found, "bpw", ".3f")) for name, found in kinds]
    losses = [(name, numbers(found, "median_loss", ".2e")) for name, found in kinds]
    print_columns("bits per weight", runs, rates)
    print_columns("median relative error", runs, losses)
    layers = [(name, numbers(lines, "relative_loss", ".2e")) for name, lines in differing(runs)]
    if layers:
        print_columns("relative errors that differ most", runs, layers)


def numbers(found: Sequence[Any], field: str, form: str) -> list[str]:
    """Return one field of kinds or layers as text; a dash where a run has none."""
    from nearplane.cli.layer_tables import formatted

    return [formatted(getattr(each, field, None), form) for each in found]


def print_columns(title: str, runs: list[Any], rows: list[tuple[str, list[str]]]) -> None:
    """Print a table with a column for every run, and an empty line."""
    from rich.table import Table

    from nearplane.cli.layer_tables import wide_console

    table = Table(title, *(each.name for each in runs), box=None, pad_edge=False)
    for label, values in rows:
        table.add_row(label, *values)
    console = wide_console()
    console.print(table)
    console.print()

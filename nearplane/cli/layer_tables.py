"""What inspect and compare print of layers: tables by kind, and charts of one line."""

from typing import Any

from nearplane.report.findings import megabytes
from nearplane.report.kinds import Kind
from nearplane.report.strips import BARS, PLAIN, Field, strips

WIDE = 200  # columns where the output goes to a file and lines are not wrapped
BESIDE = 24  # columns of a strip's range, and of what is between


def wide_console() -> Any:
    """Return a console that breaks no line when the output goes to a file."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=WIDE)


def print_kinds(kinds: list[Kind]) -> None:
    """Print one line for every kind of layers."""
    from rich.table import Table

    titles = (
        "kind",
        "layers",
        "bytes",
        "bits",
        "of single layers",
        "median error",
        "largest",
        "of",
    )
    table = Table(*titles, box=None, pad_edge=False)
    for kind in kinds:
        table.add_row(
            kind.name,
            f"{len(kind.layers):,}",
            megabytes(kind.stored_bytes),
            f"{kind.bpw:.3f}",
            f"{kind.least_bpw:.2f} .. {kind.most_bpw:.2f}",
            formatted(kind.median_loss, ".2e"),
            formatted(kind.most_loss, ".2e"),
            kind.worst,
        )
    wide_console().print(table)


def print_strips(kinds: list[Kind], title: str, field: Field, spec: str, logarithmic: bool) -> None:
    """Print a chart of one line for every kind of layers in blocks, from the first to the last.

    - `spec`: the format of the least and the largest number beside it.
    """
    from rich.table import Table

    console = wide_console()
    named = max((len(kind.name) for kind in kinds), default=0)
    bars = BARS if console.encoding.lower().startswith("utf") else PLAIN
    lines = strips(kinds, field, console.width - named - BESIDE, logarithmic, bars)
    if not lines:
        return
    table = Table(title, "first block .. last", "least .. most", box=None, pad_edge=False)
    for line in lines:
        between = f"{line.least:{spec}} .. {line.most:{spec}}"
        table.add_row(line.kind, line.characters, between)
    console.print(table)


def formatted(number: int | float | None, spec: str) -> str:
    """Return a number in the format `spec`, or a dash for None."""
    return "-" if number is None else format(number, spec)

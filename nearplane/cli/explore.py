"""The command explore: a page that shows rounding as a closest-vector problem."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from nearplane.types import NearplaneError


def explore(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the page is written")] = Path(
        "explore.html"
    ),
    show: Annotated[
        bool, typer.Option("--open/--no-open", help="Show the page in the browser")
    ] = True,
) -> None:
    """Write a page that shows rounding, GPTQ, its bound and clipping on a lattice."""
    from nearplane.pages.explore import page

    if out.is_dir() or not out.parent.is_dir():
        raise NearplaneError(f"--out {out} must be a file in a directory that is there")
    out.write_text(page(), encoding="utf-8")
    typer.echo(f"{out}: open it in a browser; it needs no network")
    if show:
        webbrowser.open(out.resolve().as_uri())

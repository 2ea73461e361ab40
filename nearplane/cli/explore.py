"""The command explore: a page that shows rounding as a closest-vector problem."""

import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from nearplane.cli.options import TrustRemoteCode
from nearplane.types import NearplaneError

TITLE = b"<title>nearplane explore"  # of every page that was written


def explore(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the page is written")] = Path(
        "explore.html"
    ),
    show: Annotated[
        bool, typer.Option("--open/--no-open", help="Show the page in the browser")
    ] = True,
    layer: Annotated[
        tuple[str, str, int] | None,
        typer.Option(metavar="DIR LAYER ROW", help="Also show a row of a checkpoint's layer"),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model that DIR was made of")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A text that DIR is run on, for the layer's inputs"),
    ] = None,
    columns: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="COLUMN COLUMN", help="Two columns of the layer to show first"),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write a page that shows rounding, GPTQ, its bound and clipping on a lattice.

    With --layer, it also shows sections of a real row: its weights of MODEL, its stored integers,
    and the box of the bound, under the Hessian of the inputs that the layer has on a text.
    """
    from nearplane.pages.explore import page

    check_out(out)
    if layer is None and (against, text, columns) != (None, None, None):
        raise NearplaneError("--against, --text and --columns need --layer DIR LAYER ROW")
    shown = None
    if layer is not None:
        shown = shown_layer(layer, against, text, columns, trust_remote_code)
    out.write_text(page(shown), encoding="utf-8")
    typer.echo(f"{out}: open it in a browser; it needs no network")
    if show:
        fragment = "" if layer is None else "#layer"
        webbrowser.open(out.resolve().as_uri() + fragment)


def check_out(out: Path) -> None:
    """Raise NearplaneError unless a page may be written there: over an earlier page, if any."""
    if out.is_dir() or not out.resolve().parent.is_dir():
        raise NearplaneError(f"--out {out} must be a file in a directory that is there")
    if out.exists() and TITLE not in out.read_bytes()[:1000]:
        raise NearplaneError(
            f"{out} exists and is no page of nearplane explore: give another --out"
        )


def shown_layer(
    layer: tuple[str, str, int],
    against: str | None,
    text: str | None,
    columns: tuple[int, int] | None,
    trusted: bool,
) -> dict[str, Any]:
    """Return what the page shows of a layer; everything that can be refused is refused first."""
    from nearplane.cli.progress import watching
    from nearplane.cli.quiet import quiet
    from nearplane.pages.layer_section import check_columns, check_layer, sections, stored_row

    directory, name, row = layer
    if against is None or text is None:
        raise NearplaneError(
            "--layer needs --against MODEL, for the weights, and --text FILE, for the inputs: a "
            "checkpoint stores neither"
        )
    if not Path(text).is_file():
        raise NearplaneError(f"there is no text file {text}")
    checkpoint = check_layer(directory, name, row)
    stored = stored_row(checkpoint, name, row)
    check_columns(stored, columns)
    quiet()
    from nearplane.pages.layer_inputs import input_hessian, original_row

    entry = checkpoint.layers[name]
    weight = original_row(against, name, row, (entry["rows"], entry["columns"]), trusted)
    with watching() as watcher:
        hessian, tokens = input_hessian(directory, name, text, trusted, watcher.progress)
    recipe = checkpoint.config["quantization_config"].get("recipe") or {}
    said = {"name": name, "row": row, "text": Path(text).name, "tokens": tokens}
    said |= {"model": Path(against).name, "checkpoint": Path(directory).name}
    said |= {"method": recipe.get("method", ""), "void": entry.get("void", "")}
    said |= {"layer_loss": entry.get("damped_loss"), "layer_bound": entry.get("bound")}
    return said | sections(stored, weight, hessian, columns)

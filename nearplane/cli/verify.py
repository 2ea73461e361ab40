"""The commands verify and inspect."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from nearplane.cli.options import TrustRemoteCode
from nearplane.types import NearplaneError

Directory = Annotated[str, typer.Argument(metavar="DIR", help="A checkpoint's directory")]


def verify(
    directory: Directory,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model that DIR was made of")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="The calibration text, if it has moved since")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Check that DIR is whole and, with the model, that its certificates are true."""
    from nearplane.cli.quiet import quiet
    from nearplane.evaluate.verify import verify as check
    from nearplane.evaluate.verify import verify_against

    if calibration is not None and against is None:
        raise NearplaneError("--calibration needs --against: the loss is of the model's weights")
    found = check(directory)
    if against is not None and not found.problems:
        quiet()
        found = verify_against(directory, against, calibration, found, trust_remote_code)
    for sentence in found.checked:
        typer.echo(sentence if sentence.startswith("not checked") else f"ok: {sentence}")
    for problem in found.problems:
        typer.echo(f"wrong: {problem}")
    if found.problems:
        raise NearplaneError(f"{directory} is damaged in {len(found.problems)} places")


def inspect(
    directory: Directory,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON")] = False,
) -> None:
    """Print what is stored of every layer, what it cost in bits and in error, and the recipe."""
    from nearplane.evaluate.bits import count_bytes
    from nearplane.export.checkpoint_reader import open_checkpoint
    from nearplane.pages.report_json import few_token_sentences

    path = Path(directory)
    checkpoint, bits = open_checkpoint(path), count_bytes(path)
    recipe = checkpoint.config["quantization_config"].get("recipe") or {}
    rows = [
        layer_row(layer.name, layer.bpw, checkpoint.layers[layer.name]) for layer in bits.layers
    ]
    if as_json:
        typer.echo(
            json.dumps({"recipe": recipe, "bits": bits.for_json(), "layers": rows}, indent=1)
        )
        return
    print_table(rows)
    typer.echo(bits.sentence())
    for name, (numbers, size) in bits.uncompressed.items():
        typer.echo(f"kept: {name}, {numbers:,} numbers in {size / 1e6:.2f} MB")
    for reason in dict.fromkeys(row["void"] for row in rows if row["void"]):
        count = sum(row["void"] == reason for row in rows)
        typer.echo(f"no bound for {count} of {len(rows)} layers: {reason}")
    for sentence in few_token_sentences(checkpoint.layers):
        typer.echo(sentence)
    # the bits per weight of single layers are in the table above
    short_recipe = {key: value for key, value in recipe.items() if key != "allocation"}
    typer.echo(f"recipe: {json.dumps(short_recipe)}")


def layer_row(name: str, bpw: float, entry: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table; None for numbers that the layer's certificate does not have."""
    from nearplane.pages.report_json import ratio, relative_loss

    facts = entry.get("facts") or {}
    return {
        "name": name,
        "rows": entry["rows"],
        "columns": entry["columns"],
        "bpw": bpw,
        "entropy": facts.get("entropy"),
        "am_gm_bits": facts.get("am_gm_bits"),
        "relative_loss": relative_loss(entry),
        "loss_over_bound": ratio(entry.get("damped_loss"), entry.get("bound")),
        "void": entry.get("void", ""),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print one line for each layer; lines are not wrapped when the output goes to a file."""
    from rich.console import Console
    from rich.table import Table

    titles = ("layer", "shape", "bits", "entropy", "AM/GM", "relative loss", "loss/bound")
    table = Table(*titles, box=None, pad_edge=False)
    for row in rows:
        shape = f"{row['rows']} x {row['columns']}"
        numbers = [formatted(row[key], ".3f") for key in ("bpw", "entropy", "am_gm_bits")]
        table.add_row(
            row["name"],
            shape,
            *numbers,
            formatted(row["relative_loss"], ".2e"),
            formatted(row["loss_over_bound"], ".3f"),
        )
    console = Console(markup=False, highlight=False)
    wide = console if console.is_terminal else Console(markup=False, highlight=False, width=200)
    wide.print(table)


def formatted(number: int | float | None, spec: str) -> str:
    """Return a number in the format `spec`, or a dash for None."""
    return "-" if number is None else format(number, spec)

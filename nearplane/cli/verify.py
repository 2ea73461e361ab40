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
    from nearplane.report.layer_lines import natural

    path = Path(directory)
    checkpoint, bits = open_checkpoint(path), count_bytes(path)
    recipe = checkpoint.config["quantization_config"].get("recipe") or {}
    rows = [
        layer_row(layer.name, layer.bpw, checkpoint.layers[layer.name])
        for layer in sorted(bits.layers, key=lambda layer: natural(layer.name))
    ]
    if as_json:
        typer.echo(
            json.dumps({"recipe": recipe, "bits": bits.for_json(), "layers": rows}, indent=1)
        )
        return
    run, remark = run_of(checkpoint, bits)
    print_charts(run)
    print_table(rows)
    print_totals(checkpoint, bits, rows)
    # the bits per weight of single layers are in the table above
    short_recipe = {key: value for key, value in recipe.items() if key != "allocation"}
    typer.echo(f"recipe: {json.dumps(short_recipe)}")
    if remark:
        typer.echo(remark)
    print_advice(run, directory)


def run_of(checkpoint: Any, bits: Any) -> tuple[Any, str]:
    """Return the run of a checkpoint's certificates with what report.json adds to them.

    And a sentence if report.json cannot be used, or "".
    """
    from nearplane.report.layer_lines import natural
    from nearplane.report.reading import REPORT, checked_run, read_report

    raw, remark = {}, ""
    if (checkpoint.directory / REPORT).is_file():
        try:
            raw = read_report(checkpoint.directory).raw
        except NearplaneError as error:
            remark = f"not used: {error}"
    stored = {layer.name: (layer.record_bytes, layer.bpw) for layer in bits.layers}
    layers = [
        checkpoint.layers[name] | {"name": name, "stored_bytes": size, "bpw": bpw}
        for name, (size, bpw) in sorted(stored.items(), key=lambda item: natural(item[0]))
    ]
    recipe = checkpoint.config["quantization_config"].get("recipe") or {}
    other = sum(size for _, size in bits.uncompressed.values())
    own = {"layers": layers, "recipe": recipe, "bits": {"other_bytes": other}}
    return checked_run({**raw, **own}, str(checkpoint.directory)), remark


def print_charts(run: Any) -> None:
    """Print a summary by kind of layer, and charts of bits and errors by block."""
    from nearplane.cli.layer_tables import print_kinds, print_strips
    from nearplane.report.kinds import kinds

    found = kinds(run.layers)
    print_kinds(found)
    typer.echo()
    print_strips(found, "bits", lambda layer: layer.bpw, ".2f", False)
    typer.echo()
    print_strips(found, "relative error", lambda layer: layer.relative_loss, ".1e", True)
    typer.echo()


def print_totals(checkpoint: Any, bits: Any, rows: list[dict[str, Any]]) -> None:
    """Print sums, what is stored as it was, and which layers have no bound or few tokens."""
    from nearplane.report.report_json import few_token_sentences

    typer.echo(bits.sentence())
    for name, (numbers, size) in bits.uncompressed.items():
        typer.echo(f"kept: {name}, {numbers:,} numbers in {size / 1e6:.2f} MB")
    for reason in dict.fromkeys(row["void"] for row in rows if row["void"]):
        count = sum(row["void"] == reason for row in rows)
        typer.echo(f"no bound for {count} of {len(rows)} layers: {reason}")
    for sentence in few_token_sentences(checkpoint.layers):
        typer.echo(sentence)


def print_advice(run: Any, directory: str) -> None:
    """Print three sentences: what hurts, what would help, and what to run next."""
    from nearplane.report.findings import advice

    typer.echo()
    for sentence in advice(run, directory).sentences():
        typer.echo(sentence)


def layer_row(name: str, bpw: float, entry: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table; None for numbers that the layer's certificate does not have."""
    from nearplane.report.report_json import ratio, relative_loss

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
    from rich.table import Table

    from nearplane.cli.layer_tables import formatted, wide_console

    titles = ("layer", "shape", "bits", "entropy", "steps gain", "relative loss", "damped/bound")
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
    wide_console().print(table)

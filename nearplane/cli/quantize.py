"""nearplane quantize: a model is compressed and stored as a checkpoint."""

from typing import Annotated, Any

import typer

from nearplane.cli.destination import (
    destination_in,
    finished_before,
    survey_for,
    unfinished_path,
    write_for,
)
from nearplane.cli.method_options import chosen, method_parameters
from nearplane.cli.options import parameters_of, settings_from, with_options
from nearplane.cli.plan import plan
from nearplane.cli.run_settings import (
    Model,
    More,
    Settings,
    calibration_of,
    check_one_size,
    prepare,
    run_arguments,
)
from nearplane.types import NearplaneError

Out = Annotated[str, typer.Argument(metavar="OUT", help="A new or empty directory")]


@with_options(parameters_of(Settings), method_parameters())
def quantize(
    model: Model,
    out: Out,
    more: More = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would take, as plan does")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue a run to OUT that ended too early"),
    ] = False,
    **options: Any,
) -> None:
    """Quantize MODEL and store it in OUT, which appears whole or not at all."""
    asked = destination_in(options)
    settings: Settings = settings_from(Settings, options)
    method = chosen(settings.method, options)
    check_one_size(settings.size, options)
    if dry_run:
        return plan(model, more, **options)
    arguments, calibration = run_arguments(settings), calibration_of(settings, more)
    if calibration is None:
        raise NearplaneError("say what to calibrate on: --calibration FILE_OR_DATASET")
    prepare(settings)
    from nearplane.cli.progress import watching
    from nearplane.export.ledger import Ledger
    from nearplane.export.output_directory import resolved_output
    from nearplane.pipeline import quantize as run
    from nearplane.plan.calibration_size import check_one_given
    from nearplane.walk.ranks import Ranks

    check_one_given(settings.sequences, arguments["seconds"])
    made = str(resolved_output(out)) if asked is None else unfinished_path(out)
    if asked is not None and finished_before(made, resume):
        return write_for(asked, made, out, settings)
    Ledger(made).refuse_without_resume(resume)
    found, prints = survey_for(model, method, settings, asked), Ranks.joined().first
    if prints:
        typer.echo(found.sentence(), err=True)
    with watching() as watcher:
        report = run(
            found,
            made,
            found.method,
            calibration,
            resume=resume,
            watcher=watcher,
            **arguments,
        )
    if prints:
        print_totals(out, report, asked is None)
    if prints and asked is not None:
        write_for(asked, made, out, settings)


def print_totals(out: str, report: dict[str, Any], final: bool = True) -> None:
    """Print the totals of a finished run.

    - `final`: whether its bits are those of what the user gets.
    """
    from nearplane.report.report_json import few_token_sentences

    bits, layers = report["bits"], report["layers"]
    typer.echo(f"{out}: {len(layers)} layers in {report['seconds']:.0f} s")
    if final:
        typer.echo(
            f"bits per weight: {bits['bpw']:.4f} of {bits['quantized_weights']:,} quantized "
            f"weights, {bits['bpw_of_file']:.4f} of the whole model"
        )
    certified = f"{report['certified_layers']} of {len(layers)} layers keep to their bound"
    if report["loss_over_bound"] is not None:
        certified += f", at {report['loss_over_bound']:.2f} of it"
    if final:
        typer.echo(certified)
        typer.echo(f"{out}/report.html shows which layers lost most, and where the bits went")
    for name in report["fallbacks"]:
        typer.echo(f"warning: {name} was rounded to nearest")
    for sentence in few_token_sentences({layer["name"]: layer for layer in layers}):
        typer.echo(sentence)

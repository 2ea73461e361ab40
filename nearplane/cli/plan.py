"""nearplane plan: what quantizing a model would take."""

from typing import Annotated, Any

import typer

from nearplane.cli.destination import destination_in, survey_for
from nearplane.cli.method_options import chosen, method_parameters
from nearplane.cli.options import parameters_of, settings_from, with_options
from nearplane.cli.run_settings import (
    Model,
    More,
    Settings,
    calibration_of,
    check_one_size,
    device_memory_limit,
    memory_limit,
    prepare,
    time_limit,
)


@with_options(parameters_of(Settings), method_parameters())
def plan(
    model: Model,
    more: More = None,
    ranks: Annotated[int, typer.Option(help="Processes that share the run")] = 1,
    **options: Any,
) -> None:
    """Say what quantizing MODEL would take, before a weight is loaded."""
    asked = destination_in(options)
    settings: Settings = settings_from(Settings, options)
    method = chosen(settings.method, options)
    check_one_size(settings.size, options)
    seconds = time_limit(settings)
    calibration_of(settings, more)
    prepare(settings)
    from nearplane.plan.calibration_size import check_one_given
    from nearplane.plan.devices import known
    from nearplane.plan.estimate import estimate
    from nearplane.plan.run_size import RunSize

    check_one_given(settings.sequences, seconds)
    known(settings.device)
    RunSize(ranks if settings.sequences is None else settings.sequences, 2, ranks)
    found = survey_for(model, method, settings, asked, bare=True)
    size = (settings.sequences, settings.length)
    limits = memory_limit(settings), device_memory_limit(settings)
    expected = estimate(found, *size, ranks, settings.device, *limits)
    if seconds is not None:
        expected = expected.within(seconds)
        typer.echo(expected.time_sentence(seconds))
    for line in expected.lines():
        typer.echo(line)
    if expected.device != "cpu":
        typer.echo("")
        for line in expected.table():
            typer.echo(line)

"""The commands quantize and plan."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from nearplane.cli.method_options import chosen, method_help, method_parameters
from nearplane.cli.options import Arithmetic, parameters_of, settings_from, with_options
from nearplane.types import NearplaneError

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A directory, a hub name or a .gguf")]
Out = Annotated[str, typer.Argument(metavar="OUT", help="A new or empty directory")]


@dataclass(frozen=True)
class Settings:
    """The options of quantize and plan that do not belong to a method."""

    method: Annotated[str, typer.Option(help=method_help())] = "eclq"
    size: Annotated[
        str | None,
        typer.Option(
            help="Largest size of the weight files, as 100MB or 1.5GiB, in place of --bpw"
        ),
    ] = None
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Text the model is rounded on: a .txt, .jsonl or .parquet file, "
            "or a data set as NAME[:CONFIG][:SPLIT]"
        ),
    ] = None
    sequences: Annotated[
        int | None,
        typer.Option(
            help="At most so many sequences; by default 24 tokens for every column of the widest "
            "layer, from 16,384 to 262,144"
        ),
    ] = None
    length: Annotated[
        int | None, typer.Option(help="Tokens of a sequence; 512, or the model's limit if less")
    ] = None
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Put documents in the tokenizer's template")
    ] = False
    memory: Annotated[
        str | None,
        typer.Option(
            help="Keep within so much memory, as 6GiB, or refuse; by default what is available"
        ),
    ] = None
    time: Annotated[
        str | None,
        typer.Option(
            help="Pick the sequences by how long a run may take, as 10min or 1.5h, in place of "
            "--sequences"
        ),
    ] = None
    arithmetic: Arithmetic = "auto"
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Leave layers alone whose names match this expression; repeatable"),
    ] = None
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a model with parts that cannot be quantized")
    ] = False
    lm_head: Annotated[
        bool, typer.Option("--lm-head", help="Quantize the output head too; unties a tied one")
    ] = False
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python files that the model brings")
    ] = False
    threads: Annotated[int | None, typer.Option(help="Use so many cores")] = None


@with_options(parameters_of(Settings), method_parameters())
def quantize(
    model: Model,
    out: Out,
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
    settings: Settings = settings_from(Settings, options)
    method = chosen(settings.method, options)
    check_one_size(settings.size, options)
    if dry_run:
        return plan(model, **options)
    seconds = time_limit(settings)
    if settings.calibration is None:
        raise NearplaneError("say what to calibrate on: --calibration FILE_OR_DATASET")
    prepare(settings)
    from nearplane.cli.progress import watching
    from nearplane.export.ledger import Ledger
    from nearplane.export.output_directory import resolved_output
    from nearplane.pipeline import quantize as run
    from nearplane.plan.calibration_size import check_one_given
    from nearplane.plan.survey import survey
    from nearplane.walk.ranks import Ranks

    check_one_given(settings.sequences, seconds)
    resolved_output(out)
    Ledger(out).refuse_without_resume(resume)
    rules = rules_of(settings)
    arithmetic = settings.arithmetic
    found = survey(model, method, rules, settings.trust_remote_code, arithmetic=arithmetic)
    found, prints = at_requested_size(found, settings.size), Ranks.joined().first
    if prints:
        typer.echo(found.sentence(), err=True)
    with watching() as watcher:
        report = run(
            found,
            out,
            found.method,
            settings.calibration,
            sequences=settings.sequences,
            length=settings.length,
            seconds=seconds,
            chat_template=settings.chat_template,
            resume=resume,
            memory=memory_limit(settings),
            arithmetic=arithmetic,
            watcher=watcher,
        )
    if prints:
        print_totals(out, report)


@with_options(parameters_of(Settings), method_parameters())
def plan(
    model: Model,
    ranks: Annotated[int, typer.Option(help="Processes that share the run")] = 1,
    device: Annotated[
        str,
        typer.Option(
            help="What each process runs on: cpu, this machine; projected: a100, b200, h100, h200"
        ),
    ] = "cpu",
    **options: Any,
) -> None:
    """Say what quantizing MODEL would take, before a weight is loaded."""
    settings: Settings = settings_from(Settings, options)
    method = chosen(settings.method, options)
    check_one_size(settings.size, options)
    seconds = time_limit(settings)
    prepare(settings)
    from nearplane.plan.calibration_size import check_one_given
    from nearplane.plan.devices import known
    from nearplane.plan.estimate import estimate
    from nearplane.plan.run_size import RunSize
    from nearplane.plan.survey import survey

    check_one_given(settings.sequences, seconds)
    known(device)
    RunSize(ranks if settings.sequences is None else settings.sequences, 2, ranks)
    rules = rules_of(settings)
    options = {"bare": True, "arithmetic": settings.arithmetic}
    found = survey(model, method, rules, settings.trust_remote_code, **options)
    found = at_requested_size(found, settings.size)
    size = (settings.sequences, settings.length)
    expected = estimate(found, *size, ranks, device, memory_limit(settings))
    if seconds is not None:
        expected = expected.within(seconds)
        typer.echo(expected.time_sentence(seconds))
    for line in expected.lines():
        typer.echo(line)


def check_one_size(size: str | None, options: dict[str, Any]) -> None:
    """Raise NearplaneError if both --size and --bpw are given."""
    if size is not None and options.get("bpw") is not None:
        raise NearplaneError("give --size or --bpw, not both: each of them sets the rate")


def at_requested_size(found: Any, size: str | None) -> Any:
    """Return the survey with its method at the bits per weight that make weight files of `size`."""
    if size is None:
        return found
    from nearplane.plan.survey import at_size

    return at_size(found, bytes_of("--size", size))


def memory_limit(settings: Settings) -> int | None:
    """Return --memory in bytes, or None."""
    return None if settings.memory is None else bytes_of("--memory", settings.memory)


def bytes_of(option: str, size: str) -> int:
    """Return the bytes of a size such as 100MB or 1.5GiB."""
    parts = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kMGT]?)(i?)B?\s*", size)
    if parts is None:
        raise NearplaneError(f"{option} {size!r} is no size: write 100MB or 1.5GiB")
    power = " kMGT".index(parts[2] or " ")
    return int(float(parts[1]) * (1024 if parts[3] else 1000) ** power)


def time_limit(settings: Settings) -> float | None:
    """Return --time in seconds, or None."""
    if settings.time is None:
        return None
    parts = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|min|h)\s*", settings.time)
    if parts is None:
        raise NearplaneError(f"--time {settings.time!r} is no time: write 90s, 10min or 1.5h")
    return float(parts[1]) * {"s": 1, "min": 60, "h": 3600}[parts[2]]


def rules_of(settings: Settings) -> Any:
    """Return which layers are skipped; NearplaneError if --skip is not a regular expression."""
    from nearplane.model.selection import Rules

    for pattern in settings.skip or ():
        try:
            re.compile(pattern)
        except re.error as error:
            raise NearplaneError(f"--skip {pattern!r} is no regular expression: {error}") from error
    return Rules(skip=tuple(settings.skip or ()), strict=settings.strict, lm_head=settings.lm_head)


def prepare(settings: Settings) -> None:
    """Set the number of threads and silence the libraries."""
    import torch

    from nearplane.cli.quiet import quiet
    from nearplane.model.compute_dtype import check_arithmetic

    check_arithmetic(settings.arithmetic)
    if settings.threads is not None:
        if settings.threads < 1:
            raise NearplaneError(f"--threads must be at least 1, not {settings.threads}")
        torch.set_num_threads(settings.threads)
    quiet()


def print_totals(out: str, report: dict[str, Any]) -> None:
    """Print the totals of a finished run."""
    from nearplane.walk.report import few_token_sentences

    bits, layers = report["bits"], report["layers"]
    typer.echo(f"{out}: {len(layers)} layers in {report['seconds']:.0f} s")
    typer.echo(
        f"bits per weight: {bits['bpw']:.4f} of {bits['quantized_weights']:,} quantized weights, "
        f"{bits['bpw_of_file']:.4f} of the whole model"
    )
    certified = f"{report['certified_layers']} of {len(layers)} layers keep to their bound"
    if report["loss_over_bound"] is not None:
        certified += f", at {report['loss_over_bound']:.2f} of it"
    typer.echo(certified)
    for name in report["fallbacks"]:
        typer.echo(f"warning: {name} was rounded to nearest")
    for sentence in few_token_sentences({layer["name"]: layer for layer in layers}):
        typer.echo(sentence)

"""The options that quantize and plan have in common, and what they mean."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from nearplane.cli.method_options import method_help
from nearplane.cli.options import Arithmetic, TrustRemoteCode
from nearplane.types import NearplaneError

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A directory, a hub name or a .gguf")]


@dataclass(frozen=True)
class Settings:
    """The options of quantize and plan that do not belong to a method."""

    method: Annotated[str, typer.Option(help=method_help())] = "eclq"
    destination: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="FORMAT",
            help="Round onto what a format of other programs holds, and write that to OUT: "
            "gguf:TYPE, gguf with --size, gptq:BITS, compressed-tensors:BITS, vllm:BITS",
        ),
    ] = None
    size: Annotated[
        str | None,
        typer.Option(
            help="Largest size of the weight files, as 100MB or 1.5GiB, in place of --bpw"
        ),
    ] = None
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            help="Text the model is rounded on: a .txt, .md, .json, .jsonl, .parquet, .csv or .tsv "
            "file, as it is or packed as .gz, .zst, .bz2 or .xz; a directory of them; or a data "
            "set as NAME[:CONFIG][:SPLIT]. Several are mixed, in proportion to weights as in "
            "a.jsonl:2 b.txt:1"
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
    languages: Annotated[
        bool,
        typer.Option(
            help="Take one of five sequences from nearplane's own sample of 28 languages and "
            "source code, so that what the text lacks loses less"
        ),
    ] = True
    memory: Annotated[
        str | None,
        typer.Option(
            help="Keep within so much memory, as 6GiB, or refuse; by default what is available"
        ),
    ] = None
    device: Annotated[
        str,
        typer.Option(
            help="Where blocks run: cpu, cuda, cuda:1, xpu, mps, or auto; plan projects a100, "
            "b200, h100 and h200, too, and measures what is here"
        ),
    ] = "cpu"
    device_memory: Annotated[
        str | None,
        typer.Option(help="Use so much of the device's memory, as 20GiB; by default what is free"),
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
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave the embedding, or the output head (head), as it is; repeatable. Where they "
            "share a weight, either means both"
        ),
    ] = None
    trust_remote_code: TrustRemoteCode = False
    threads: Annotated[int | None, typer.Option(help="Use so many cores")] = None


More = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SOURCE]...", help="More sources of --calibration", show_default=False),
]


def calibration_of(settings: Settings, more: list[str] | None) -> Any:
    """Return the source of the calibration text, several as a mixture; None if none is given.

    - `more`: the sources behind the first, which the command line takes for further arguments.
    """
    from nearplane.walk.sources import Sources, weighted

    if more and not settings.calibration:
        raise NearplaneError(f"what is {more[0]}? Texts to calibrate on follow --calibration")
    sources = [*(settings.calibration or []), *(more or [])]
    if len(sources) > 1:
        return Sources.of(sources)
    return weighted(sources[0])[0] if sources else None


def check_one_size(size: str | None, options: dict[str, Any]) -> None:
    """Raise NearplaneError if both --size and --bpw are given."""
    if size is not None and options.get("bpw") is not None:
        raise NearplaneError("give --size or --bpw, not both: each of them sets the rate")


def survey_of(model: str, method: Any, settings: Settings, bare: bool = False) -> Any:
    """Return the model's survey as the options ask for it.

    With --size, its method has the bits per weight that make weight files of that size.

    - `bare`: also accept a directory that holds nothing but a config.json.
    """
    from nearplane.plan.survey import at_size, survey

    rules = rules_of(settings)
    parts = {"bare": bare, "arithmetic": settings.arithmetic}
    found = survey(model, method, rules, settings.trust_remote_code, **parts)
    if settings.size is None:
        return found
    return at_size(found, bytes_of("--size", settings.size))


def memory_limit(settings: Settings) -> int | None:
    """Return --memory in bytes, or None."""
    return None if settings.memory is None else bytes_of("--memory", settings.memory)


def device_memory_limit(settings: Settings) -> int | None:
    """Return --device-memory in bytes, or None."""
    if settings.device_memory is None:
        return None
    if settings.device == "cpu":
        raise NearplaneError(
            "--device-memory is of another device than the CPU: name it with --device"
        )
    return bytes_of("--device-memory", settings.device_memory)


def run_arguments(settings: Settings) -> dict[str, Any]:
    """Return what `pipeline.quantize` is given of the options that plan has, too."""
    same = ("sequences", "length", "chat_template", "languages", "arithmetic", "device")
    return {name: getattr(settings, name) for name in same} | {
        "seconds": time_limit(settings),
        "memory": memory_limit(settings),
        "device_memory": device_memory_limit(settings),
    }


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
    return Rules(
        skip=tuple(settings.skip or ()),
        strict=settings.strict,
        keep=tuple(settings.keep or ()),
    )


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

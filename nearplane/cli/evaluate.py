"""The commands eval and run."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import typer

from nearplane.cli.eval_settings import EvalSettings
from nearplane.cli.evaluation import Evaluation, text_sentences
from nearplane.cli.options import (
    Arithmetic,
    TrustRemoteCode,
    parameters_of,
    settings_from,
    with_options,
)
from nearplane.types import NearplaneError, Progress, naming_errors

Dequantize = Annotated[
    bool,
    typer.Option(
        help="Decode every layer once, into as much memory as the original took, or multiply by "
        "the compressed weights; the results differ by roundings"
    ),
]

Resident = Annotated[
    str,
    typer.Option(
        help="How compressed layers lie in memory: compact, as small as the file; fast, up to "
        "a bit a weight more; auto, the faster one on this processor if memory allows it"
    ),
]

Activations = Annotated[
    str,
    typer.Option(
        help="What products by the fast form take: auto, integers of 15 bits; int8, of 8 bits, "
        "which is faster and off by about a hundredth; exact, only the compact form"
    ),
]

CONTEXT = 1024  # tokens of a window


@with_options(parameters_of(EvalSettings))
def evaluate(
    model: Annotated[str, typer.Argument(metavar="DIR_OR_MODEL", help="A checkpoint or a model")],
    dequantize: Dequantize = True,
    arithmetic: Arithmetic = "auto",
    resident: Resident = "auto",
    activations: Activations = "auto",
    trust_remote_code: TrustRemoteCode = False,
    **options: Any,
) -> None:
    """Print the perplexity of a checkpoint or a model on texts, and its answers to tasks.

    With --against, the divergence from another model, and whether their answers differ by chance.
    What is measured of a checkpoint is added to its report.json.
    """
    from nearplane.cli.progress import watching
    from nearplane.cli.quiet import quiet
    from nearplane.export.load import check_resident
    from nearplane.model.compute_dtype import check_arithmetic, name_of

    settings: EvalSettings = settings_from(EvalSettings, options)
    check_arithmetic(arithmetic)
    check_resident(resident, activations)
    settings.check()
    quiet()
    tasks = settings.opened_tasks()
    form = resident, activations
    opened = with_tokenizer(model, dequantize, arithmetic, trust_remote_code, form)
    settings.check_template(opened[1])
    how = {"arithmetic": name_of(opened[0].dtype), "weights": "decoded" if dequantize else resident}
    texts, reference = measured_texts(opened, settings, arithmetic, trust_remote_code)
    found = Evaluation(model, settings, how, texts=texts)
    found.give_out()  # before tasks, which have errors of their own
    if tasks:
        with watching() as watcher:
            answered = answers(tasks, settings, opened, reference, watcher)
        Evaluation(model, settings, how, tasks=answered).give_out()
        found = replace(found, tasks=answered)
    if settings.as_json:
        return typer.echo(found.as_json())
    for line in closing_lines(model, opened[0], how, trust_remote_code):
        typer.echo(line)


def closing_lines(
    name: str, opened: Any, how: dict[str, Any], trust_remote_code: bool
) -> Iterator[str]:
    """Yield the type that products ran in, and bits per weight in files and in memory."""
    from nearplane.export.linear import is_compressed, resident_bpw

    yield f"computed in {how['arithmetic']}"
    yield bits_sentence(name, trust_remote_code)
    if how["weights"] != "decoded" and is_compressed(opened):
        yield f"{resident_bpw(opened):.3f} bits per weight of the compressed layers in memory"


def windows_of(model: Any, tokenizer: Any, settings: EvalSettings) -> dict[str, Any]:
    """Return text -> (its windows, how they were made), all of them before any is evaluated."""
    from nearplane.evaluate.perplexity import text_windows
    from nearplane.model.positions import check_positions, position_limit

    options = settings.window_options(min(CONTEXT, position_limit(model) or CONTEXT))
    if settings.texts:
        check_positions(model, options.context, "--context")
    return {text: (text_windows(text, tokenizer, options), options) for text in settings.texts}


def measured(
    model: Any, windows: dict[str, Any], reference: Any, progress: Progress
) -> dict[str, Any]:
    """Return text -> its perplexity or, with a reference, divergence; all are one step."""
    from nearplane.evaluate.divergence import divergence
    from nearplane.evaluate.perplexity import perplexity

    total, done, found = sum(split.tokens.numel() for split, _ in windows.values()), 0, {}
    for text, (split, options) in windows.items():
        part = split.tokens.numel()

        def overall(name: str, share: float, done: int = done, part: int = part) -> None:
            progress(name, (done + share * part) / total)

        if reference is None:
            found[text] = perplexity(model, split, options, overall)
        else:
            found[text] = divergence(model, reference, split, options, overall)
        done += part
    return found


def answers(
    tasks: dict[str, Any],
    settings: EvalSettings,
    model: tuple[Any, Any],
    reference: tuple[Any, Any] | None,
    watcher: Any,
) -> list[Any]:
    """Return the figures of all tasks, after their warnings were told."""
    from nearplane.evaluate.tasks import results_of

    if reference is not None and reference[1] is None:
        reference = reference[0], model[1]
    options = settings.task_options()
    found, warnings = results_of(tasks, options, model, reference, watcher.progress)
    for warning in warnings:
        watcher.says(f"lm-evaluation-harness: {warning}")
    return found


def measured_sentences(name: str, settings: EvalSettings, trusted: bool) -> list[str]:
    """Return sentences on a text for a checkpoint's card: decoded weights, products in float32."""
    settings.window_options(CONTEXT)  # refuses what cannot be before the model is opened
    opened = with_tokenizer(name, True, "float32", trusted)
    (found,) = measured_texts(opened, settings, "float32", trusted)[0].values()
    return text_sentences(found)


def measured_texts(
    opened: tuple[Any, Any], settings: EvalSettings, arithmetic: str, trusted: bool
) -> tuple[dict[str, Any], tuple[Any, Any] | None]:
    """Return what was measured of each text, and the reference with its tokenizer, if any."""
    from nearplane.cli.progress import watching

    with watching() as watcher:
        windows, reference = windows_of(*opened, settings), None
        if settings.against is not None:
            reference = open_any(settings.against, True, arithmetic, trusted)
        found = measured(opened[0], windows, reference and reference[0], watcher.progress)
        return found, reference


def run(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A checkpoint or a model")],
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", help="What the text begins with; none: a conversation"),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(help="At most so many new tokens; 64, or 512 for each answer"),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(help="Put the prompt in the chat template; by default if there is one"),
    ] = None,
    dequantize: Dequantize = False,
    arithmetic: Arithmetic = "auto",
    resident: Resident = "auto",
    activations: Activations = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Continue a prompt, greedily, and write the text as it comes; or answer line by line."""
    from nearplane.cli.conversation import Conversation
    from nearplane.cli.quiet import quiet
    from nearplane.evaluate.writing import Words, written
    from nearplane.export.load import check_resident
    from nearplane.model.compute_dtype import check_arithmetic
    from nearplane.model.positions import check_positions

    tokens = tokens if tokens is not None else 64 if prompt is not None else 512
    if tokens < 1:
        raise NearplaneError(f"--tokens must be at least 1, not {tokens}")
    check_arithmetic(arithmetic)
    check_resident(resident, activations)
    quiet()
    form = resident, activations
    opened = directory, dequantize, arithmetic, trust_remote_code, form
    model, tokenizer = with_tokenizer(*opened)
    if prompt is None:
        Conversation(model, tokenizer, tokens).run()
        return
    with naming_errors("making tokens of the prompt"):
        inputs = prompt_inputs(tokenizer, prompt, chat)
    check_positions(model, inputs["input_ids"].shape[1] + tokens, "prompt, or fewer --tokens")
    written(model, tokenizer, inputs, tokens, Words(tokenizer))


def with_tokenizer(name: str, *options: Any) -> tuple[Any, Any]:
    """Return what `open_any` does; NearplaneError for a model without a tokenizer."""
    opened = open_any(name, *options)
    if opened[1] is None:
        raise NearplaneError(f"{name} has no tokenizer that can be read")
    return opened


def open_any(
    name: str,
    dequantize: bool,
    arithmetic: str = "auto",
    trust_remote_code: bool = False,
    form: tuple[str, str] = ("auto", "auto"),
) -> tuple[Any, Any]:
    """Return model and tokenizer of a nearplane checkpoint or of any transformers model.

    - `form`: `resident` and `activations` of `load`.
    """
    from nearplane.export.load import load, load_tokenizer
    from nearplane.model.compute_dtype import arithmetic_for
    from nearplane.model.open_model import location, open_config, open_model, stored_dtype

    where = location(name, trust_remote_code)
    config = open_config(name, where)
    quantization = getattr(config, "quantization_config", None)
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "nearplane":
        compute = arithmetic_for(stored_dtype(config, where), arithmetic)
        source = open_model(name, trust_remote_code, dtype=compute)
        return source.model, source.tokenizer
    options = {"arithmetic": arithmetic, "trust_remote_code": trust_remote_code}
    options |= {"resident": form[0], "activations": form[1]}
    tokenizer = load_tokenizer(name, trust_remote_code)
    return load(name, dequantize=dequantize, **options), tokenizer


def bits_sentence(name: str, trust_remote_code: bool = False) -> str:
    """Return a sentence with a checkpoint's bits per weight, or with the dtype of another model."""
    from pathlib import Path

    from nearplane.evaluate.bits import count_bytes, is_checkpoint
    from nearplane.model.compute_dtype import name_of
    from nearplane.model.open_model import location, open_config, stored_dtype

    if is_checkpoint(name):
        return count_bytes(Path(name)).sentence()
    where = location(name, trust_remote_code)
    return f"not compressed: {name_of(stored_dtype(open_config(name, where), where))}"


def prompt_inputs(tokenizer: Any, prompt: str, chat: bool | None) -> Any:
    """Return the inputs of the model for a prompt, in the chat template if `chat`.

    With `chat` None, the chat template is used if there is one.
    """
    template = getattr(tokenizer, "chat_template", None)
    if chat and not template:
        raise NearplaneError("this model's tokenizer has no chat template: leave --chat out")
    if chat is None:
        chat = template is not None
    if not chat:
        return tokenizer(prompt, return_tensors="pt")
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )

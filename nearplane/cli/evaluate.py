"""The commands eval and run."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from nearplane.cli.options import Arithmetic, TrustRemoteCode
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


def evaluate(
    model: Annotated[str, typer.Argument(metavar="DIR_OR_MODEL", help="A checkpoint or a model")],
    text: Annotated[str, typer.Option(help="A text file the model was not calibrated on")],
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of a window; 1024, or as many as the model has positions for"),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens between windows; only the last so many are scored")
    ] = None,
    windows: Annotated[int | None, typer.Option(help="At most so many windows")] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A model to compare with, as the one DIR was made of"),
    ] = None,
    dequantize: Dequantize = True,
    arithmetic: Arithmetic = "auto",
    resident: Resident = "auto",
    activations: Activations = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Print the perplexity of a checkpoint or a model on a text, and its bits per weight."""
    from nearplane.cli.quiet import quiet
    from nearplane.export.linear import is_compressed, resident_bpw
    from nearplane.export.load import check_resident
    from nearplane.model.compute_dtype import check_arithmetic, name_of

    check_arithmetic(arithmetic)
    check_resident(resident, activations)
    asked = Comparison(text, against, context, stride, windows, arithmetic)
    quiet()
    found = asked.of(model, trust_remote_code, dequantize, (resident, activations))
    for sentence in found.sentences:
        typer.echo(sentence)
    typer.echo(f"computed in {name_of(found.model.dtype)}")
    typer.echo(bits_sentence(model, trust_remote_code))
    if not dequantize and is_compressed(found.model):
        bpw = resident_bpw(found.model)
        typer.echo(f"{bpw:.3f} bits per weight of the compressed layers in memory")


@dataclass(frozen=True)
class Measured:
    """A model, and sentences on its perplexity and divergence."""

    model: Any
    sentences: list[str]


@dataclass(frozen=True)
class Comparison:
    """What a model is measured on: windows of a text, and another model if there is one.

    - `context`: tokens of a window; None: CONTEXT, or as many as the model has positions for.
    - `stride`: tokens between windows. `windows`: at most so many.
    """

    text: str
    against: str | None = None
    context: int | None = None
    stride: int | None = None
    windows: int | None = None
    arithmetic: str = "auto"

    def of(
        self,
        name: str,
        trusted: bool,
        dequantize: bool = True,
        form: tuple[str, str] = ("auto", "auto"),
    ) -> Measured:
        """Return a model with what was measured of it; NearplaneError if it has no tokenizer.

        - `name`, `dequantize`, `form`: as of `open_any`.
        """
        from nearplane.cli.progress import watching
        from nearplane.evaluate.perplexity import WindowOptions, text_windows
        from nearplane.model.positions import check_positions, position_limit

        options = WindowOptions(
            CONTEXT if self.context is None else self.context, self.stride, self.windows
        )
        opened, tokenizer = open_any(name, dequantize, self.arithmetic, trusted, form)
        if tokenizer is None:
            raise NearplaneError(f"{name} has no tokenizer that can be read")
        if self.context is None:
            most = min(CONTEXT, position_limit(opened) or CONTEXT)
            stride = self.stride if self.stride is None else min(self.stride, most)
            options = WindowOptions(most, stride, self.windows)
        check_positions(opened, options.context, "--context")
        with watching() as watcher:
            split = text_windows(self.text, tokenizer, options)
            reference = None
            if self.against is not None:
                reference, _ = open_any(self.against, True, self.arithmetic, trusted)
            return Measured(opened, results(opened, split, options, reference, watcher.progress))


def results(
    model: Any,
    windows: Any,
    options: Any,
    reference: Any,
    progress: Progress,
) -> list[str]:
    """Return a sentence with the perplexity and, with a reference, one with the divergence."""
    from nearplane.evaluate.divergence import divergence
    from nearplane.evaluate.perplexity import perplexity

    if reference is None:
        return [perplexity(model, windows, options, progress).sentence()]
    found = divergence(model, reference, windows, options, progress)
    return [found.model.sentence(), found.sentence()]


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
    model, tokenizer = open_any(directory, dequantize, arithmetic, trust_remote_code, form)
    if tokenizer is None:
        raise NearplaneError(f"{directory} has no tokenizer that can be read")
    if prompt is None:
        Conversation(model, tokenizer, tokens).run()
        return
    with naming_errors("making tokens of the prompt"):
        inputs = prompt_inputs(tokenizer, prompt, chat)
    check_positions(model, inputs["input_ids"].shape[1] + tokens, "prompt, or fewer --tokens")
    written(model, tokenizer, inputs, tokens, Words(tokenizer))


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

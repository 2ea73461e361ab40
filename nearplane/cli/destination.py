"""--for: a method whose result a format of other programs holds, and what is checked before it."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import typer

from nearplane.types import NearplaneError

# bits per weight that llama.cpp's mixtures of types have on Llama 3 8B, head and embedding included
MIXTURES = {
    "Q3_K_S": 3.64,
    "Q3_K_M": 4.0,
    "Q3_K_L": 4.3,
    "Q4_K_S": 4.67,
    "Q4_K_M": 4.89,
    "Q5_K_S": 5.57,
    "Q5_K_M": 5.7,
}
SIZED = 16.0  # bits per weight, until a size says how many
WIDEST = 9.0  # bits that no type has
SUPER_BLOCK = 256  # columns of most types' blocks
GROUP_SIZES = (128, 64, 32)  # of packed formats: the largest that divides the columns of all layers
PACKED = {"gptq": "gptq", "compressed-tensors": "compressed-tensors", "vllm": "compressed-tensors"}
FLOAT16_STEPS = ("gptq", "gguf")  # formats that hold no other steps
WIDTHS = {"gptq": (4, 8), "compressed-tensors": range(2, 9), "vllm": (4, 8)}


@dataclass(frozen=True)
class Destination:
    """What `--for` asks.

    - `format`: that the checkpoint is exported to. `options`: of the method, its name included.
    - `keep`, `skip`: what the format does not hold.
    - `any_size`: whether it has types for every size of the file.
    """

    format: str
    options: dict[str, Any]
    keep: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    any_size: bool = False
    grouped: bool = field(default=False)

    def settings(self, settings: Any) -> Any:
        """Return the options of the command with those that the format asks for."""
        keep = [*(settings.keep or []), *self.keep]
        skip = [*(settings.skip or []), *self.skip]
        size = None if self.any_size else settings.size
        changed = {"method": self.options["method"], "keep": keep or None, "skip": skip or None}
        return replace(settings, size=size, **changed)

    def fitted(self, found: Any, size: str | None, bare: bool) -> Any:
        """Return the survey with its method as the format and the size of the file ask.

        - `bare`: whether the model may have no tokenizer.

        NearplaneError for a model that the format does not hold.
        """
        if self.format == "gguf":
            return fitted_to_gguf(found, size if self.any_size else None, bare)
        columns = [layer.shape[1] for layer in found.layers]
        sizes = [n for n in GROUP_SIZES if all(c % n == 0 for c in columns)]
        if not self.grouped and not sizes:
            raise NearplaneError(
                f"no groups of {', '.join(map(str, GROUP_SIZES))} columns divide all layers: give "
                "--group-size"
            )
        method = found.method if self.grouped else replace(found.method, group_size=sizes[0])
        check_packed(found, method, self.format)
        return replace(found, method=method)


def destination_in(options: dict[str, Any]) -> Destination | None:
    """Return what `--for` asks, if it was given, and put what that means for a method into options.

    NearplaneError for a word that means nothing, and for options that contradict it.
    """
    if options.get("destination") is None:
        return None
    asked = destination_of(options["destination"], options)
    for name, value in asked.options.items():
        given = options.get(name)
        if name != "method" and given not in (None, value):
            raise NearplaneError(f"--for chooses --{name}: leave out --{name} {given}")
    options |= asked.options
    return asked


def survey_for(
    model: str, method: Any, settings: Any, asked: Destination | None, bare: bool = False
) -> Any:
    """Return the model's survey as the options, and the format that it is quantized for, ask.

    - `bare`: also accept a directory that holds nothing but a config.json, and read no weights.
    """
    from nearplane.cli.run_settings import survey_of

    if asked is None:
        return survey_of(model, method, settings, bare)
    found = survey_of(model, method, asked.settings(settings), bare)
    found = asked.fitted(found, settings.size, bare)
    if not bare:
        check_magnitudes(found, asked.format)
    return found


def destination_of(word: str, options: dict[str, Any]) -> Destination:
    """Return what `--for WORD` asks: gguf, or gguf, gptq, compressed-tensors or vllm with a detail.

    - `options`: the other options of the command; None where one was not given.

    NearplaneError for another word, and for options that contradict it.
    """
    name, _, detail = word.partition(":")
    name = name.lower()
    own = {"gguf": "gguf"}.get(name, "gptq")
    if options.get("method") not in (None, "eclq", own):
        raise NearplaneError("--for chooses the method: leave out --method")
    if name == "gguf":
        return for_gguf(detail, options)
    if name not in PACKED:
        known = ", ".join(["gguf[:TYPE]", *(f"{each}[:BITS]" for each in PACKED)])
        raise NearplaneError(f"--for {word!r} is no format; there are {known}")
    bits = int(detail) if detail.isdecimal() else 0 if detail else 4
    if bits not in WIDTHS[name]:
        widths = ", ".join(map(str, WIDTHS[name]))
        raise NearplaneError(f"--for {name} takes widths of {widths} bits, not {detail!r}")
    if options.get("size") is not None:
        raise NearplaneError(f"--for {name}:{bits} has one size: leave out --size")
    made = {"method": "gptq", "bits": bits}
    grouped = options.get("group_size") is not None
    return Destination(PACKED[name], made, ("embedding", "head"), (r"\.experts\.",), False, grouped)


def for_gguf(detail: str, options: dict[str, Any]) -> Destination:
    """Return what a GGUF file of a type, of a mixture, or of a size asks."""
    from nearplane.codes.block_types import GRIDS

    sized, detail = options.get("size") is not None, detail.upper()
    for name in ("type", "mixed"):
        if options.get(name) not in (None, detail, MIXTURES.get(detail, SIZED if sized else None)):
            raise NearplaneError(f"--for gguf chooses --{name}: leave out --{name}")
    if sized and detail:
        raise NearplaneError("give --for gguf:TYPE or --for gguf with --size, not both")
    if not sized and detail not in (*GRIDS, *MIXTURES):
        known = ", ".join([*GRIDS, *MIXTURES])
        said = f"{detail!r} is no type: there are" if detail else "needs --size, or one of"
        raise NearplaneError(f"--for gguf: {said} {known}")
    made: dict[str, Any] = {"method": "gguf"}
    if detail in GRIDS:
        return Destination("gguf", made | {"type": detail})
    # the size is known once the model's metadata is
    return Destination("gguf", made | {"mixed": MIXTURES.get(detail, SIZED)}, any_size=sized)


def fitted_to_gguf(found: Any, size: str | None, bare: bool) -> Any:
    """Return the survey at the size of a file; NearplaneError for what llama.cpp cannot run."""
    from nearplane.cli.run_settings import bytes_of
    from nearplane.export.formats.gguf import overhead
    from nearplane.model.open_model import open_tokenizer, tokenizer_problem
    from nearplane.plan.survey import at_size

    tokenizer = open_tokenizer(found.empty.where)
    if tokenizer is None and not bare:
        problem = tokenizer_problem(found.empty.where)
        raise NearplaneError(
            f"{found.name} has no tokenizer that can be read, and GGUF needs one"
            f"{problem and f': {problem}'}"
        )
    # tied parameters are there once
    parameters = dict(found.model.named_parameters())
    own = {id(layer.module.get_parameter("weight")) for layer in found.layers}
    kept = {name: p.ndim for name, p in parameters.items() if id(p) not in own}
    config = found.model.config
    metadata, wide, differences = overhead(config, tokenizer, list(parameters), kept)
    for sentence in differences:
        typer.echo(f"tokens: {sentence}", err=True)
    metadata += sum(parameters[name].numel() for name in wide) * max(4 - found.dtype.itemsize, 0)
    if size is not None:
        most = WIDEST * found.quantized / 8 + found.unquantized * 4 + metadata
        rest = int(min(bytes_of("--size", size), most)) - metadata
        if rest <= 0:
            raise NearplaneError(
                f"--size {size} cannot be met: vocabulary and metadata of the file take "
                f"{metadata / 1e6:.2f} MB"
            )
        found = at_size(found, rest)
    odd = [layer for layer in found.layers if layer.shape[1] % SUPER_BLOCK]
    if odd:
        typer.echo(
            f"{SUPER_BLOCK} does not divide the columns of {len(odd)} of {len(found.layers)} "
            "layers: these get types of 32 columns, as llama.cpp does",
            err=True,
        )
    return within_reach(found, size)


def within_reach(found: Any, size: str | None) -> Any:
    """Return the survey with at least the bits that its layers' smallest types have.

    - `size`: what the file may take; NearplaneError if that is less.
    """
    method = found.method
    if not method.mixed:
        return found
    shapes = [layer.shape for layer in found.layers]
    fewest = sum(rows * columns * min(method.rates(columns)) for rows, columns in shapes)
    least = fewest / found.quantized
    if method.mixed >= least:
        return found
    if size is not None:
        raise NearplaneError(
            f"{size} mean {method.mixed:.2f} bits per weight, and the smallest types that divide "
            f"this model's rows have {least:.2f}"
        )
    typer.echo(
        f"the smallest types that divide this model's rows have {least:.2f} bits per weight: that "
        f"in place of {method.mixed:.2f}",
        err=True,
    )
    return replace(found, method=method.with_bpw(least))


def check_packed(found: Any, method: Any, where: str) -> None:
    """Raise NearplaneError for layers that a packed format does not hold."""
    from nearplane.export.formats.linear_layers import TURNED

    if getattr(found.model.config, "model_type", None) in TURNED:
        raise NearplaneError(f"{where} holds nn.Linear layers, which this model lacks")
    for layer in found.layers:
        rows, columns = layer.shape
        if columns % min(method.group_size, columns):
            raise NearplaneError(
                f"{layer.name}: groups of {method.group_size} do not divide its {columns} columns; "
                "give another --group-size"
            )
        if where == "gptq" and (rows % 8 or columns % 8):
            raise NearplaneError(
                f"{layer.name}: 8 does not divide its shape, {rows} x {columns}; give --skip "
                f"{layer.name.rpartition('.')[2]}"
            )


def check_magnitudes(found: Any, where: str) -> None:
    """Raise NearplaneError for a layer whose weights need steps that float16 does not have.

    Reads the files of a local model once; of others, the export would refuse the layer.

    - `found`: the survey. `where`: the format.
    """
    from nearplane.methods.block_steps import LARGEST_WEIGHT, SMALLEST_WEIGHT
    from nearplane.methods.steps import LARGEST_FLOAT16, LEAST_SHRINK, SMALLEST_FLOAT16
    from nearplane.model.weight_files import largest_weights

    directory = Path(found.empty.where["pretrained_model_name_or_path"])
    if where not in FLOAT16_STEPS or found.empty.is_gguf or not directory.is_dir():
        return
    limits = SMALLEST_WEIGHT, LARGEST_WEIGHT
    if where == "gptq":
        levels = 2 ** (found.method.bits - 1) - 0.5
        limits = levels * SMALLEST_FLOAT16 / LEAST_SHRINK, levels * LARGEST_FLOAT16
    names = [f"{layer.name}.weight" for layer in found.layers]
    for name, largest in largest_weights(directory, names):
        if largest and not limits[0] <= largest <= limits[1]:
            layer = name.removesuffix(".weight")
            raise NearplaneError(
                f"{layer}: the largest weight is {largest:.2g}, and float16, in which {where} "
                f"stores steps, has none for it: leave the layer as it is (--skip "
                f"{layer.rpartition('.')[2]})"
            )


def unfinished_path(out: str) -> str:
    """Return the directory of the checkpoint that is made on the way to OUT."""
    from nearplane.export.output_directory import resolved_output

    path = Path(resolved_output(out))
    return str(path.with_name(f"{path.name}.nearplane"))


def finished_before(made: str, resume: bool) -> bool:
    """Whether only the export is left of an earlier run; NearplaneError without `--resume`."""
    from nearplane.evaluate.bits import is_checkpoint

    if not Path(made).is_dir() or not is_checkpoint(made):
        return False
    if not resume:
        raise NearplaneError(
            f"{made} is the checkpoint of an earlier run with --for: --resume exports it, or "
            "remove it"
        )
    return True


def write_for(asked: Destination, made: str, out: str, settings: Any) -> None:
    """Export the checkpoint that was made on the way to OUT, and remove it."""
    from nearplane.cli.run_settings import bytes_of
    from nearplane.export import formats

    try:
        written = formats.export(made, out, asked.format, settings.trust_remote_code, typer.echo)
    except BaseException:
        typer.echo(
            f"the checkpoint is in {made}: nearplane export {made} {out} --to {asked.format} "
            "goes on from there",
            err=True,
        )
        raise
    shutil.rmtree(made)
    weights = ("*.gguf", "*.safetensors")
    size = sum(path.stat().st_size for each in weights for path in written.glob(each))
    typer.echo(f"{out}: {size / 1e6:.1f} MB, {asked.format}")
    if asked.any_size and size > bytes_of("--size", settings.size):
        typer.echo(f"warning: that is more than --size {settings.size}", err=True)

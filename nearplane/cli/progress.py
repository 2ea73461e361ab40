"""How far a run has come: a bar on a terminal, one plain line a layer elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from nearplane.quantize import Watcher
from nearplane.types import LayerReport


@contextmanager
def watching(every: int = 1) -> Iterator[Watcher]:
    """Yield a watcher that shows a run's progress on stderr.

    - `every`: where there is no terminal, only every so many layers get a line.
    """
    if sys.stderr.isatty():
        with bar() as watcher:
            yield watcher
    else:
        yield lines(every)


@contextmanager
def bar() -> Iterator[Watcher]:
    """Yield a watcher that draws a bar."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("opening the model", total=None)

        def done(report: LayerReport, layers: int) -> None:
            described = layer_sentence(report)
            progress.update(task, advance=1, total=layers, description=described)

        def says(sentence: str) -> None:
            progress.console.print(sentence, markup=False, highlight=False)

        yield Watcher(says, done)


def lines(every: int) -> Watcher:
    """Return a watcher that prints a plain line every so many layers."""
    count = 0

    def say(sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)

    def done(report: LayerReport, layers: int) -> None:
        nonlocal count
        count += 1
        if count % every == 0 or count == layers:
            say(f"[{count}/{layers}] {layer_sentence(report)}")

    return Watcher(say, done)


def layer_sentence(report: LayerReport) -> str:
    """Return a layer's figures in one line."""
    relative = f"{report.loss / report.energy:.2e}" if report.energy else "none"
    certificate = "no bound"
    if report.bound:
        certificate = f"{report.damped_loss / report.bound:.2f} of its bound"
    return (
        f"{report.name}: {report.bpw:.3f} bits, relative loss {relative}, {certificate}, "
        f"{report.seconds:.1f} s"
    )

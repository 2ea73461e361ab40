"""How far a run has come, and how long it will take: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nearplane.pipeline import Watcher
from nearplane.types import LayerReport

SILENCE_S = 10.0  # between two plain lines of one step


@contextmanager
def watching(every: int = 1) -> Iterator[Watcher]:
    """Yield a watcher that shows a run's progress on stderr.

    - `every`: where there is no terminal, only every so many layers get a line.
    """
    if sys.stderr.isatty():
        with bar() as watcher:
            yield watcher
    else:
        yield Lines(every).watcher()


@contextmanager
def bar() -> Iterator[Watcher]:
    """Yield a watcher that draws a bar."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        shown, task = "opening the model", progress.add_task("opening the model", total=None)

        def enter(name: str, total: float) -> None:
            # times are those of one step
            nonlocal shown, task
            if name != shown:
                progress.remove_task(task)
                shown, task = name, progress.add_task(name, total=total)

        def done(report: LayerReport, layers: int) -> None:
            enter("rounding", layers)
            progress.update(task, advance=1, description=layer_sentence(report))

        def progress(name: str, share: float) -> None:
            enter(name, 1.0)
            progress.update(task, completed=share)

        def says(sentence: str) -> None:
            progress.console.print(sentence, markup=False, highlight=False)

        yield Watcher(says, done, progress)


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


@dataclass
class Lines:
    """Plain lines: of every so many layers, and of other steps now and then."""

    every: int = 1
    clock: Callable[[], float] = time.monotonic
    count: int = 0
    name: str = ""
    began: float = 0.0
    spoke: float = 0.0

    def watcher(self) -> Watcher:
        return Watcher(say, self.done, self.progress)

    def done(self, report: LayerReport, layers: int) -> None:
        """Say what became of a layer, and how long the others will take."""
        self.enter("rounding")
        self.count += 1
        if self.count % self.every == 0 or self.count == layers:
            more = self.more(self.count / layers)
            say(f"[{self.count}/{layers}] {layer_sentence(report)}{more}")

    def progress(self, name: str, share: float) -> None:
        """Say how far a step has come, unless that was said just now."""
        self.enter(name)
        now = self.clock()
        if 0 < share < 1 and now - self.spoke >= SILENCE_S:
            self.spoke = now
            say(f"{name}: {share:.0%}{self.more(share)}")

    def enter(self, name: str) -> None:
        if name != self.name:
            self.name, self.began = name, self.clock()
            self.spoke = self.began

    def more(self, share: float) -> str:
        """Return how long the rest of the step will take, by what the beginning took."""
        left = (self.clock() - self.began) * (1 / share - 1)
        return f"; about {left:.0f} s left" if left >= 1 else ""


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

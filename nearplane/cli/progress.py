"""Show the progress of a run and the time left: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nearplane.pipeline import Watcher
from nearplane.types import LayerReport

LINE_INTERVAL_S = 10.0  # at least so many seconds between two lines of one step


@contextmanager
def watching(every: int = 1) -> Iterator[Watcher]:
    """Yield a watcher that shows a run's progress on stderr.

    - `every`: without a terminal, print a line only for every `every`-th layer.
    """
    if sys.stderr.isatty():
        with bar() as watcher:
            yield watcher
    else:
        yield PlainLines(every).watcher()


@contextmanager
def bar() -> Iterator[Watcher]:
    """Yield a watcher that draws a progress bar; times are those of the current step."""
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
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        step, task = "opening the model", display.add_task("opening the model", total=None)

        def start_step(name: str, total: float) -> None:
            nonlocal step, task
            if name != step:
                display.remove_task(task)
                step, task = name, display.add_task(name, total=total)

        def done(report: LayerReport, layers: int) -> None:
            start_step("rounding", layers)
            display.update(task, advance=1, description=layer_sentence(report))

        def progress(name: str, share: float) -> None:
            start_step(name, 1.0)
            display.update(task, completed=share)

        def says(sentence: str) -> None:
            display.console.print(sentence, markup=False, highlight=False)

        yield Watcher(says, done, progress)


def say(sentence: str) -> None:
    """Print a line to stderr."""
    print(sentence, file=sys.stderr, flush=True)


@dataclass
class PlainLines:
    """Prints a line for every `every`-th layer, and the progress of other steps now and then."""

    every: int = 1
    clock: Callable[[], float] = time.monotonic
    count: int = 0
    name: str = ""
    began: float = 0.0
    last_line: float = 0.0

    def watcher(self) -> Watcher:
        return Watcher(say, self.done, self.progress)

    def done(self, report: LayerReport, layers: int) -> None:
        """Print the results of a layer, and how long the remaining ones will take."""
        self.start_step("rounding")
        self.count += 1
        if self.count % self.every == 0 or self.count == layers:
            left = self.time_left(self.count / layers)
            say(f"[{self.count}/{layers}] {layer_sentence(report)}{left}")

    def progress(self, name: str, share: float) -> None:
        """Print which share of a step is done, at most once in `LINE_INTERVAL_S`."""
        self.start_step(name)
        now = self.clock()
        if 0 < share < 1 and now - self.last_line >= LINE_INTERVAL_S:
            self.last_line = now
            say(f"{name}: {share:.0%}{self.time_left(share)}")

    def start_step(self, name: str) -> None:
        """Restart the clock if `name` is not the current step."""
        if name != self.name:
            self.name, self.began = name, self.clock()
            self.last_line = self.began

    def time_left(self, share: float) -> str:
        """Return how long the step will still take, from the time that `share` of it took."""
        left = (self.clock() - self.began) * (1 / share - 1)
        return f"; about {left:.0f} s left" if left >= 1 else ""


def layer_sentence(report: LayerReport) -> str:
    """Return the results of a layer in one line."""
    relative = f"{report.loss / report.energy:.2e}" if report.energy else "none"
    certificate = "no bound"
    if report.bound:
        certificate = f"{report.damped_loss / report.bound:.2f} of its bound"
    return (
        f"{report.name}: {report.bpw:.3f} bits, relative loss {relative}, {certificate}, "
        f"{report.seconds:.1f} s"
    )

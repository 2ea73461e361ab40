"""A thread that runs functions one after the other, while the thread that hands them in goes on."""

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Clock(Protocol):
    """Tells a thread the time, and lets it wait for what another thread has finished."""

    def now(self) -> float: ...

    def wait_until(self, moment: float, /) -> None: ...


class WallClock:
    """The time that passes by itself: what another thread finished lies in the past."""

    def now(self) -> float:
        return time.perf_counter()

    def wait_until(self, moment: float, /) -> None:
        pass


class Job:
    """A function that another thread calls.

    - `handed_in`: when it was handed in; `ended`: when it returned or failed.
    """

    def __init__(self, function: Callable[..., Any], given: tuple[Any, ...], clock: Clock):
        self.function, self.given, self.clock = function, given, clock
        self.handed_in, self.ended = clock.now(), 0.0
        self.done = threading.Event()
        self.returned: Any = None
        self.error: BaseException | None = None

    def run(self, before: BaseException | None = None) -> BaseException | None:
        """Call the function, unless a job before it failed; return the error that there was."""
        self.clock.wait_until(self.handed_in)
        self.error = before
        try:
            if before is None:
                self.returned = self.function(*self.given)
        # the thread that waits for this job is told
        except BaseException as error:
            self.error = error
        # what it was given is freed now, not when the job is
        self.given, self.ended = (), self.clock.now()
        self.done.set()
        return self.error

    def result(self) -> Any:
        """Wait for the function; return what it returned, or raise what it raised."""
        self.done.wait()
        self.clock.wait_until(self.ended)
        if self.error is not None:
            raise self.error
        returned, self.returned = self.returned, None
        return returned


class Background:
    """A context manager that runs jobs in their order, in a thread of its own.

        with Background() as background:
            job = background.start(read, path)
            ...
            job.result()

    After a job that failed no other is run; its error is raised by the next `start`, by `result`
    and at the end of the block, unless that is left by another error. Leaving the block waits for
    all jobs.

    - `threaded`: False runs every job when it is handed in, without a thread.
    """

    def __init__(self, threaded: bool = True, clock: Clock | None = None):
        self.clock = clock or CLOCK
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.latest: Job | None = None
        self.error: BaseException | None = None
        # a daemon: who interrupts the wait for it a second time need not wait for a slow disk
        self.thread = threading.Thread(target=self.run, daemon=True) if threaded else None

    def __enter__(self) -> "Background":
        if self.thread is not None:
            self.thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.thread is not None:
            self.jobs.put(None)
            self.thread.join()
        if kind is None:
            self.wait()

    def start(self, function: Callable[..., Any], *given: Any) -> Job:
        """Hand in a function and what it is called with."""
        if self.error is not None:
            raise self.error
        self.latest = job = Job(function, given, self.clock)
        if self.thread is None:
            self.error = job.run(self.error)
            if self.error is not None:
                raise self.error
        else:
            self.jobs.put(job)
        return job

    def wait(self) -> None:
        """Wait for all jobs that were handed in, and raise the error of one that failed."""
        if self.latest is not None:
            self.latest.result()

    def run(self) -> None:
        """Run the jobs, in the thread."""
        while (job := self.jobs.get()) is not None:
            self.error = job.run(self.error)
            del job


CLOCK: Clock = WallClock()

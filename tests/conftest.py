"""Settings of all tests, and what CPU time they may take together."""

import functools
import gc
import os
import statistics
import time
import zlib
from collections import Counter

import jaxtyping
import pytest
import torch
from hypothesis import settings


def checked(function=None, **options):
    """Add jaxtyping's checks, but not to a function inside another one while there are none.

    It is made anew, with its checks, whenever the other one is called: half of the tests' time.
    """
    if function is None:
        return functools.partial(checked, **options)
    inside = "<locals>" in getattr(function, "__qualname__", "")
    left_out = inside and jaxtyping.config.jaxtyping_disable
    return function if left_out else CHECKED_BY(function, **options)


# before the first module of nearplane is imported
CHECKED_BY, jaxtyping.jaxtyped = jaxtyping.jaxtyped, checked

from nearplane.model import compute_dtype  # noqa: E402
from tests import forked  # noqa: E402

# tests run beside each other, and threads of small matrices wait for each other more than they work
torch.set_num_threads(1)
# a busy machine is not a fault; laws that do not say how often they are tried are tried so often
settings.register_profile("some", deadline=None, max_examples=40)
settings.register_profile("all", deadline=None, max_examples=100)
settings.load_profile("some")
# nothing that tests write has to outlive a power cut; a descriptor must be one, all the same
os.fsync = os.fstat
# results must not depend on the processor that tests run on: all are taken to be fast at all types,
# and tests/model/test_compute_dtype.py takes them to be slow
compute_dtype.slowdown = lambda dtype: 1.0

# Checks of the shapes and types of all arguments take longer than what is checked; every so many
# tests, chosen by their names, have them, but for whole runs, whose parts other tests check.
# `--thorough` is `make test-long`.
CHECKED = 8

# A suite grows until nobody runs it. Its CPU time is compared with that of a loop of a million
# steps on the same machine, in the same minutes: `make test` says what it may come to.
SPENT: Counter[str] = Counter()  # file -> CPU seconds of its tests, with their children
LOOPS: list[float] = []  # seconds, of every process that runs tests


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="all annotations, more examples")
    parser.addoption("--most-loops", type=float, help="fail if tests take more CPU time")


def pytest_configure(config):
    if config.getoption("--thorough"):
        settings.load_profile("all")


@pytest.fixture(autouse=True)
def annotations(request):
    """Check annotated shapes and types in this test, or not."""
    everywhere = request.config.getoption("--thorough")
    some = zlib.crc32(request.node.nodeid.encode()) % CHECKED == 0
    wanted = everywhere or (some and not request.node.get_closest_marker("whole_run"))
    jaxtyping.config.update("jaxtyping_disable", not wanted)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def cpu_seconds() -> float:
    """Return the CPU time of this process and of all that it started and that have ended."""
    return sum(os.times()[:4]) + forked.spent


def loop_seconds() -> float:
    """Return the CPU time of a loop of a million steps."""
    before, total = time.process_time(), 0
    for step in range(1_000_000):
        total += step * step
    return time.process_time() - before


def pytest_collection_finish(session):
    """Spare what is imported by now from every collection of garbage: half a million objects."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    before = cpu_seconds()
    try:
        return (yield)
    finally:
        SPENT[item.location[0]] += cpu_seconds() - before


def pytest_sessionfinish(session):
    """Hand what was spent to the process that started this one, or judge the sum of all."""
    gc.unfreeze()  # Python ends as it would
    if SPENT:
        # at the end, when the other processes are still at work
        LOOPS.append(statistics.median(loop_seconds() for _ in range(9)))
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["spent"], output["loops"] = dict(SPENT), LOOPS
    elif over(session.config) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    SPENT.update(node.workeroutput.get("spent", {}) if hasattr(node, "workeroutput") else {})
    LOOPS.extend(node.workeroutput.get("loops", []) if hasattr(node, "workeroutput") else [])


def over(config) -> bool:
    """Whether the tests took more CPU time than they may."""
    most = config.getoption("--most-loops")
    return most is not None and bool(LOOPS) and loops() > most


def loops() -> float:
    return sum(SPENT.values()) / statistics.mean(LOOPS)


def pytest_terminal_summary(terminalreporter, config):
    if not LOOPS:
        return
    said = f"{sum(SPENT.values()):.0f} s of CPU time, as much as {loops():,.0f} loops"
    terminalreporter.write_line(f"{said} of {1000 * statistics.mean(LOOPS):.0f} ms; most by")
    for name, seconds in SPENT.most_common(10):
        terminalreporter.write_line(f"  {seconds:6.1f} s {name}")
    if over(config):
        most = config.getoption("--most-loops")
        terminalreporter.write_line(
            f"FAILED: that is more than {most:,.0f} loops: make them cheaper"
        )

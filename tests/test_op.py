"""Which version of a function serves a call."""

import threading

import pytest
import torch

from nearplane.methods import HPTQ
from nearplane.op import Op
from nearplane.plan.throughput import tried
from nearplane.rows import in_parts


def made() -> Op:
    """Return a function that says who served it."""

    @Op
    def who(x: int) -> str:
        return "reference"

    return who


def test_the_first_version_that_accepts_serves():
    who = made()
    who.version("even", lambda x: x % 2 == 0)(lambda x: "even")
    who.version("all", lambda x: True)(lambda x: "all")
    assert [who(2), who(3)] == ["even", "all"]
    with pytest.raises(ValueError, match="already has a version named 'all'"):
        who.version("all", lambda x: True)(lambda x: "again")


def test_a_version_serves_within_its_block_and_thread_only():
    who, elsewhere = made(), []
    with who.within(lambda x: "block", lambda x: x > 0):
        assert [who(1), who(0)] == ["block", "reference"]
        other = threading.Thread(target=lambda: elsewhere.append(who(1)))
        other.start()
        other.join()
    assert elsewhere == ["reference"] and who(1) == "reference"


def test_a_version_may_call_what_it_stands_for():
    who = made()
    who.version("fast", lambda x: True)(lambda x: "fast")
    with who.within(lambda x: f"outer {who(x)}"), who.within(lambda x: f"inner {who(x)}"):
        assert who(1) == "inner outer fast"
        with pytest.raises(ZeroDivisionError), who.within(lambda x: 1 / 0):
            who(1)
        assert who(1) == "inner outer fast"
    assert who(1) == "fast"


def test_timing_a_method_changes_nothing_for_the_process():
    threads, versions = torch.get_num_threads(), dict(in_parts.versions)
    seen = []

    def look() -> None:
        seen.append((torch.get_num_threads(), dict(in_parts.versions), in_parts.scoped.get()))

    started, done = threading.Event(), threading.Event()

    def watch() -> None:
        started.set()
        while not done.wait(0.01):
            look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    started.wait()
    trial = tried(HPTQ(bpw=6.0), 128)
    done.set()
    watcher.join()
    look()
    assert trial.sweeps >= 1 and trial.checks == 1
    assert all(each == (threads, versions, ()) for each in seen)

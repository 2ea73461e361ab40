"""One run at a time for an output directory, whatever becomes of the one before."""

import json
import multiprocessing
import os
import signal
import socket
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from nearplane.export import checkpoint_format as fmt
from nearplane.export import output_directory, output_lock
from nearplane.export.checkpoint_writer import CheckpointWriter
from nearplane.export.output_lock import OutputLock
from nearplane.types import NearplaneError

EMPTY = {"quantization_config": fmt.quantization_config({}, [])}
# processes that begin as copies of this one: nothing has to be imported again
FORK = multiprocessing.get_context("fork")


def write(out: Path, line: Connection) -> None:
    """Write a checkpoint, one step for every message, and say how it went."""
    line.recv()
    try:
        with CheckpointWriter(out) as writer:
            line.send("writing")
            line.recv()
            writer.finish(EMPTY, {})
        line.send("finished")
    except NearplaneError as error:
        line.send(f"refused: {error}")
    line.recv()


class Writer:
    """A process that writes a checkpoint when it is told to."""

    def __init__(self, out: Path):
        self.line, theirs = FORK.Pipe()
        self.process = FORK.Process(target=write, args=(out, theirs))
        self.process.start()

    def said(self) -> str:
        return self.line.recv() if self.line.poll(30) else "nothing"

    def go(self) -> None:
        self.line.send("go")

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.line.close()


@pytest.fixture
def writers(tmp_path):
    two = [Writer(tmp_path / "out") for _ in range(2)]
    yield two
    for writer in two:
        writer.end()


def test_the_second_of_two_processes_is_refused_and_names_the_first(writers, tmp_path):
    first, second = writers
    first.go()
    assert first.said() == "writing"
    second.go()
    said = second.said()
    assert said.startswith(f"refused: {tmp_path}/out is being written by process ")
    assert f"process {first.process.pid} on {socket.gethostname()!r}" in said
    first.go()
    assert first.said() == "finished"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_of_two_processes_that_race_one_writes(writers, tmp_path):
    for writer in writers:
        writer.go()
    said = {writer: writer.said() for writer in writers}
    # the first one may be refused for before its number is in the file
    (loser,) = (writer for writer in writers if said[writer].startswith("refused: "))
    (winner,) = (writer for writer in writers if said[writer] == "writing")
    named = f"by process {winner.process.pid} on "
    assert named in said[loser] or "by another process: " in said[loser]
    for writer in writers:
        writer.go()
    loser.process.join()
    assert winner.said() == "finished"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_locks_nothing(how, writers, tmp_path):
    first, second = writers
    first.go()
    assert first.said() == "writing"
    os.kill(first.process.pid, how)
    first.process.join()
    assert (tmp_path / ".out.lock").exists()
    second.go()
    assert second.said() == "writing"
    second.go()
    assert second.said() == "finished"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_lock_is_free_again_after_a_run_and_after_a_failure(tmp_path):
    with pytest.raises(RuntimeError):
        with CheckpointWriter(tmp_path / "out"):
            raise RuntimeError
    assert not list(tmp_path.iterdir())
    with CheckpointWriter(tmp_path / "out") as writer:
        with pytest.raises(NearplaneError, match=f"by process {os.getpid()} on"):
            CheckpointWriter(tmp_path / "out")
        with CheckpointWriter(tmp_path / "other") as other:
            other.finish(EMPTY, {})
        writer.finish(EMPTY, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_a_run_that_waited_sees_what_the_one_before_finished(tmp_path, monkeypatch):
    """OUT was empty when it looked, and is a checkpoint when it gets the lock."""
    real = output_directory.OutputLock

    def late(target):
        monkeypatch.setattr(output_directory, "OutputLock", real)
        with CheckpointWriter(target) as first:
            first.finish(EMPTY, {})
        return real(target)

    monkeypatch.setattr(output_directory, "OutputLock", late)
    with pytest.raises(NearplaneError, match="is not empty"):
        CheckpointWriter(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_hosts_directory_is_not_touched(tmp_path):
    left = tmp_path / ".out.partial-other-host-77-ab"
    left.mkdir()
    says = f"may still be written by process 77 on 'other-host', .* remove {left}"
    with pytest.raises(NearplaneError, match=says):
        CheckpointWriter(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [left.name]
    left.rmdir()
    with CheckpointWriter(tmp_path / "out") as writer:
        writer.finish(EMPTY, {})


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"[" * 900, b'{"host": 3}', b"\xff", b'{"pid": 1}']
)
def test_what_a_lock_file_says_is_only_for_people(content, tmp_path):
    held = OutputLock(tmp_path / "out")
    held.path.write_bytes(content)
    with pytest.raises(NearplaneError, match="by another process: wait"):
        OutputLock(tmp_path / "out")
    held.release()
    held.release()
    stale = tmp_path / ".out.lock"
    stale.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    OutputLock(tmp_path / "out").release()
    assert not stale.exists()


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / ".out.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(NearplaneError, match="cannot write in"):
        CheckpointWriter(tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_lock_file_that_goes_away_in_between_is_made_again(tmp_path, monkeypatch):
    real, removed = output_lock.fcntl.flock, []

    def flock(file, how):
        # the owner before lets go: it removes the file that was opened here already
        if not removed:
            removed.append((tmp_path / ".out.lock").unlink())
        real(file, how)

    monkeypatch.setattr(output_lock.fcntl, "flock", flock)
    held = OutputLock(tmp_path / "out")
    assert held.path.exists() and removed == [None]
    with pytest.raises(NearplaneError, match="is being written"):
        OutputLock(tmp_path / "out")
    held.release()


def take_turns(place: Path) -> None:
    """Take the lock again and again; an error if somebody else is inside, too."""
    end, count = time.monotonic() + 0.7, 0
    while time.monotonic() < end or not count:
        try:
            held = OutputLock(place / "out")
        except NearplaneError:
            continue
        (place / "inside").touch(exist_ok=False)
        (place / "inside").unlink()
        held.release()
        count += 1


def test_many_processes_in_turn_never_write_at_once(tmp_path):
    runs = [FORK.Process(target=take_turns, args=(tmp_path,)) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0, 0]


def test_waiting_is_not_what_a_refusal_does(tmp_path):
    held = OutputLock(tmp_path / "out")
    began = time.monotonic()
    with pytest.raises(NearplaneError):
        OutputLock(tmp_path / "out")
    assert time.monotonic() - began < 1
    held.release()

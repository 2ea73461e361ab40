"""Programs in processes of their own that do not import torch and transformers anew.

Imports take most of a short program's time. A server (`multiprocessing`'s) makes them once and
forks itself for every program, which then has its arguments, environment, folder and files as if
it were started by a shell. What must see Python's own start is started with `subprocess`.
"""

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from typing import Any

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preloaded"])

spent = 0.0  # CPU seconds of all programs that have ended by themselves


@dataclass(frozen=True)
class Program:
    """What a process runs, and what it finds there."""

    path: str  # of a file, or the name of a module
    words: tuple[str, ...]
    environment: Mapping[str, str]
    folder: str  # it runs here; `stdout`, `stderr` and `spent` are written to `files`
    files: str


class Started:
    """A process, and what it says."""

    def __init__(self, path: str | Path, *words: object, folder: Path = ROOT, **environment: str):
        self.files = tempfile.TemporaryDirectory()
        everything = os.environ | environment
        program = Program(
            str(path), tuple(map(str, words)), dict(everything), str(folder), self.files.name
        )
        self.process = SERVER.Process(target=_run, args=(program,))
        self.process.start()

    @property
    def going(self) -> bool:
        """Whether it has not ended."""
        return self.process.exitcode is None

    def said(self, name: str = "stderr") -> str:
        """Return what was written to `stdout` or `stderr` so far."""
        path = Path(self.files.name, name)
        return path.read_text() if path.exists() else ""

    def wait(self, timeout: float = 300) -> CompletedProcess:
        """Return exit status (that of a signal is negative) and texts, as subprocess.run.

        TimeoutExpired when it takes longer; the process is killed.
        """
        global spent
        self.process.join(timeout)
        if self.going:
            self.kill()
            raise TimeoutExpired(self.process.name, timeout, self.said("stdout"), self.said())
        spent += float(self.said("spent") or 0)
        return CompletedProcess(
            self.process.name, self.process.exitcode, self.said("stdout"), self.said()
        )

    def send_signal(self, how: int) -> None:
        os.kill(self.process.pid, how)

    def kill(self) -> None:
        """End the process and all that it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            self.process.kill()
        self.process.join()


def run(path: str | Path, *words: object, **options) -> CompletedProcess:
    """Run a program to its end."""
    return Started(path, *words, **options).wait()


def run_together(count: int, module: str, *words: object) -> list[CompletedProcess]:
    """Run a program in processes that find each other, as torchrun starts them.

    When one fails the others are ended, as torchrun does.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    same = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    same |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    all_ = [
        Started(module, *words, RANK=str(rank), LOCAL_RANK=str(rank), **same)
        for rank in range(count)
    ]
    while any(one.going for one in all_):
        if any(one.process.exitcode for one in all_):
            for one in all_:
                one.process.terminate()
        time.sleep(0.02)
    return [one.wait() for one in all_]


class Forking(subprocess.Popen):
    """A process that is a fork of this one if it is to run a Python program."""

    def __init__(self, args: Any, **options: Any):
        words = [args] if isinstance(args, str | Path) else [os.fspath(word) for word in args]
        if words[0] == sys.executable:
            words = [word for word in words[1:] if word != "-u"]
            module = words[:1] == ["-m"]
            if module or words and _is_file(words[0]):
                # Popen calls it where it would start the program, and it does not return
                own = words[module:], options.get("env")
                options["preexec_fn"] = partial(_be, *own)
        super().__init__(args, **options)


def _run(program: Program) -> None:
    """Be the program."""
    os.setpgid(0, 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(program.files, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(program.folder)
    # not by this server, which would import everything once more
    multiprocessing.set_start_method(None, force=True)
    try:
        status = _done(program.path, program.words, program.environment)
    finally:
        used = os.times()
        Path(program.files, "spent").write_text(str(sum(used[:4])))
    os._exit(status)


def _be(words: Sequence[str], environment: Mapping[str, str] | None) -> None:
    """Be a program that this one started."""
    status = 1
    try:
        os.closerange(3, 1 << 16)  # one of them says to `subprocess` that the program is started
        # what the program that started this one does at its end, or with garbage, it does itself
        gc.freeze()
        atexit._clear()
        weakref.finalize._registry.clear()  # pyright: ignore
        weakref.finalize._registered_with_atexit = False  # pyright: ignore
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file and name != "__main__" and str(Path(file).parent) == sys.path[0]:
                del sys.modules[name]
        status = _done(
            words[0], words[1:], dict(os.environ if environment is None else environment)
        )
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _done(path: str, words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a program whose files and folder are set, and return its exit status."""
    before = sys.stdin, sys.stdout, sys.stderr  # until the end: they would be closed
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2)
    )
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [path, *words]
    also = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    first = str(Path(path).parent) if _is_file(path) else os.getcwd()
    sys.path[:0] = [first, *filter(None, also)]
    status = _status(runpy.run_path if _is_file(path) else runpy.run_module, path)
    sys.stdout.flush()
    sys.stderr.flush()
    del before
    return status


def _is_file(path: str) -> bool:
    return path.endswith(".py")


def _status(run, path: str) -> int:
    """Run, and do what Python does at its end."""
    status: object = 0
    try:
        run(path, run_name="__main__")
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    if isinstance(status, int | None):
        return status or 0
    print(status, file=sys.stderr)
    return 1

"""Functions of another process, called through a pipe: between two calls that process sleeps.

A worker, in whatever environment, calls `serve` with its functions; `Worker` starts it and calls
them by name. A call is one line of JSON, and so is its answer. This file imports only the standard
library.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# threads of an OpenMP pool spin for some milliseconds after their work, on cores others measure on
SETTLE_S = 0.02


class WorkerError(RuntimeError):
    """A worker's function failed; the message is one line."""


def meet_rate() -> None:
    """Wait until the threads of this process's pools have gone to sleep."""
    time.sleep(SETTLE_S)


def serve(functions: dict[str, Callable[..., Any]]) -> None:
    """Answer calls until the pipe closes; what the functions print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        call = json.loads(line)
        try:
            answer = {"result": functions[call.pop("call")](**call)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".replace("\n", " ")[:300]}
        meet_rate()
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """A process that runs `script`; what it says beside its answers goes to the file `log`."""

    def __init__(self, python: str | Path, script: str | Path, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("w") as said:
            self.process = subprocess.Popen(
                [str(python), str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
            )

    def __call__(self, function: str, /, **given: Any) -> Any:
        """Return what the worker's `function` returns; WorkerError if it raises or dies."""
        assert self.process.stdin and self.process.stdout
        try:
            print(json.dumps({"call": function, **given}), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"exit status {self.process.wait()}; see {self.log.name}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """End the process and give its memory back."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

"""A real `vllm serve`, asked over HTTP."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = Path(__file__).with_name("command.py").absolute()
START_SECONDS, STOP_SECONDS, ANSWER_SECONDS = 600, 60, 300


@dataclass
class Server:
    """Where a running server is."""

    url: str

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=ANSWER_SECONDS) as answer:
                return answer.status
        except (urllib.error.URLError, ConnectionError):
            return 0

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """Return the answer to a JSON request."""
        data = json.dumps(body).encode()
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, kind)
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return json.load(answer)


@contextmanager
def serving(directory: Path, scratch: Path, *options: str, ranks: int = 1) -> Iterator[Server]:
    """Serve a checkpoint until the block is left.

    - `scratch`: for the server's log and for what vLLM compiles.
    """
    port = free_port()
    # -P: the program's folder has files whose names others use
    command = [sys.executable, "-P", str(COMMAND), "serve", str(directory)]
    command += ["--port", str(port), "--host", "127.0.0.1", "--max-model-len", "256", *options]
    command += ["--tensor-parallel-size", str(ranks)]
    log = scratch / "log.txt"
    with log.open("w") as out:
        # a session of its own: what it starts ends with it
        process = subprocess.Popen(
            command,
            cwd=scratch,
            env=environment(scratch, ranks),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        server = Server(f"http://127.0.0.1:{port}")
        await_health(server, process, log)
        yield server
    finally:
        stop(process)


def environment(scratch: Path, ranks: int) -> dict[str, str]:
    """Return the environment of the server: no network, little memory, one core a rank."""
    cores = sorted(os.sched_getaffinity(0))
    bound = "|".join(str(cores[rank % len(cores)]) for rank in range(ranks))
    return os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "2" if ranks == 1 else "1",
        "VLLM_CPU_OMP_THREADS_BIND": "auto" if ranks == 1 else bound,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(scratch / "cache"),
        "HF_HUB_OFFLINE": "1",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def await_health(server: Server, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.status("/health") != 200:
        ended = process.poll() is not None
        assert not ended and time.monotonic() < deadline, log.read_text()[-6000:]
        time.sleep(0.5)


def stop(process: subprocess.Popen) -> None:
    """End the server, gently first."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

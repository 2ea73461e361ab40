"""Feed damaged files to every reader for some seconds: crashes, hangs, leaks, other errors.

    python -m tests.fuzz.run --seconds 600 --seed 1            all targets, in turn
    python -m tests.fuzz.run --target record --seed 17 --cases 1    one case again

Every target runs in a process of its own under a limit of memory, and every case under one of time.
Case k of a target has the seed SEED + k. What fails is written to build/fuzz/found as hexadecimal.
"""

import argparse
import faulthandler
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random

from nearplane.cli.quiet import quiet
from nearplane.types import NearplaneError
from tests.fuzz.mutate import assert_one_sentence
from tests.fuzz.targets import TARGETS, Files, Target

FOUND = Path("build/fuzz/found")
MOST_MEMORY = 6 << 30  # of addresses, beyond what the libraries take
CASE_SECONDS = 20  # on a busy machine; a case takes milliseconds
MOST_GROWTH = 50 << 20  # resident bytes, between the first quarter of a run and its end
FEW = 200  # cases, after which a run may be judged for growth


def main() -> int:
    """Run what the command line says; return the exit status."""
    words = arguments()
    if words.worker:
        return work(words)
    names = [words.target] if words.target else list(TARGETS)
    share = words.seconds / len(names)
    failed = [name for name in names if run_target(name, share, words)]
    if failed:
        print(f"fuzz: {', '.join(failed)} failed")
    return len(failed)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--cases", type=int, help="at most so many cases of each target")
    parser.add_argument("--worker", metavar="PLACE", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_target(name: str, seconds: float, words: argparse.Namespace) -> int:
    """Run one target in a process of its own; return its exit status."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "tests.fuzz.run", "--worker", place, "--target", name]
        command += ["--seconds", str(seconds), "--seed", str(words.seed)]
        if words.cases:
            command += ["--cases", str(words.cases)]
        status = subprocess.run(command).returncode
        if status:
            keep(name, Path(place) / "case.json", status)
    return status


def keep(name: str, case: Path, status: int) -> None:
    """Copy the case at work when the process ended to where it stays."""
    if not case.exists():
        print(f"fuzz {name}: exit status {status} before the first case")
        return
    FOUND.mkdir(parents=True, exist_ok=True)
    seed = json.loads(case.read_text())["seed"]
    kept = FOUND / f"{name}-{seed}.json"
    kept.write_text(case.read_text())
    print(f"fuzz {name}: exit status {status}; --target {name} --seed {seed} --cases 1; {kept}")


def work(words: argparse.Namespace) -> int:
    """Run the cases of one target in this process."""
    place = Path(words.worker)
    # libraries say much of damaged files
    logging.disable(logging.CRITICAL)
    quiet()
    target = TARGETS[words.target](place)
    limit_memory()
    counts = {"refused": 0, "accepted": 0}
    memory: list[int] = []
    began, seed = time.monotonic(), words.seed
    while time.monotonic() - began < words.seconds or words.cases:
        if words.cases and seed - words.seed >= words.cases:
            break
        if not run_case(target, seed, place / "case.json", counts):
            return 1
        memory.append(resident_bytes())
        seed += 1
    growth = memory[-1] - memory[len(memory) // 4]
    print(
        f"fuzz {words.target}: {len(memory)} cases in {time.monotonic() - began:.0f} s, "
        f"{counts['refused']} refused, {counts['accepted']} accepted, "
        f"{memory[-1] >> 20} MiB, {growth >> 20:+} MiB since the first quarter",
        flush=True,
    )
    if len(memory) > FEW and growth > MOST_GROWTH:
        print(f"fuzz {words.target}: memory grows", flush=True)
        return 1
    return 0


def run_case(target: Target, seed: int, note: Path, counts: dict[str, int]) -> bool:
    """Run one case; return whether it ended as it should."""
    files = target.draw(Random(seed))
    # a crash leaves this file behind
    note.write_text(json.dumps({"seed": seed, "files": {n: c.hex() for n, c in files.items()}}))
    faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
    try:
        counts[outcome(target, files)] += 1
    except BaseException:  # also what panics in Rust
        traceback.print_exc()
        return False
    finally:
        faulthandler.cancel_dump_traceback_later()
    return True


def outcome(target: Target, files: Files) -> str:
    """Return what became of the files; any error but a refusal in one sentence is raised."""
    try:
        target.check(files)
    except NearplaneError as error:
        assert_one_sentence(error)
        return "refused"
    return "accepted"


def limit_memory() -> None:
    """Let this process have `MOST_MEMORY` more addresses than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    # offline and quiet, before transformers is imported
    sys.exit(main())

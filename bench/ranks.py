"""Several processes of one thread each: how much faster are rounding and calibration?

    .venv/bin/python bench/ranks.py [--rows 4096] [--columns 2048] [--ranks 1 2 4] [--rounds 3]
    .venv/bin/python bench/ranks.py --tiny

Each number of processes is started by torchrun, each process on a core of its own where there are
enough. Timed are

- solve: nearest plane, and the losses and bounds of every row
- hptq, eclq: all of the method on one matrix, with searches, packing and certificate
- calibration: the walk through a random model of two blocks with all its Hessians, unrounded

Seconds are the least of the rounds; numbers of processes take turns. Times as fast is the median
over the rounds, with its spread; efficiency is that over the cores in use. CPU is what all
processes spent together in the fastest repeat. Takes about three minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import tiny
import torch

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 2
BPW = 3.125
HIDDEN = 768  # of the model that is walked through, at most
PARTS = ("solve", "hptq", "eclq", "calibration")

Found = dict[str, tuple[float, float]]  # wall and CPU seconds of every part


def works(rows: int, columns: int, ranks: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what is timed."""
    from nearplane.lattice import nearest_plane
    from nearplane.methods import ECLQ, HPTQ
    from nearplane.methods.certificate import measure

    draws = torch.Generator().manual_seed(0)
    x = torch.randn(2 * columns, columns, generator=draws)
    weight = torch.randn(rows, columns, generator=draws) * 0.02
    method = HPTQ(bpw=BPW)
    basis = method.basis(x.T @ x / len(x))
    target, factor = weight[:, basis.columns], basis.factor.float()
    back, step = basis.columns.argsort(), torch.full((1, 1), 0.01)
    sides = basis.factor.diagonal()[None] * 0.01

    def solve() -> None:
        code = nearest_plane(target, factor, step)
        measure(weight, lambda some: (code[some] * step)[:, back], basis, lambda _: sides)

    yield "solve", solve
    yield "hptq", lambda: method(weight, basis)
    yield "eclq", lambda: ECLQ(bpw=BPW)(weight, basis)
    yield "calibration", calibration(ranks, min(columns, HIDDEN))


def calibration(ranks: Any, hidden: int) -> Callable[[], Any]:
    """Return a walk that rounds nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from nearplane.methods import RTN
    from nearplane.walk.rounding import Rounder
    from nearplane.walk.walk import Walk

    class Nothing(Rounder):
        def round(self, layers, inputs, row_step=None):
            yield from ()

    class Unrounded(Walk):
        def rounder_for(self, found):
            parts = found.placement, found.trace, found.layers, self.rules, self.ranks, self.bits
            return Nothing(self.method, *parts)

    sizes = {"hidden_size": hidden, "intermediate_size": 8 * hidden // 3, "num_hidden_layers": 2}
    heads = dict.fromkeys(("num_attention_heads", "num_key_value_heads"), hidden // 64)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=512, **sizes, **heads)).eval()
    tokens = torch.randint(2, 500, (16, 512), generator=torch.Generator().manual_seed(1))
    return lambda: list(Unrounded(model, RTN(), tokens, ranks=ranks))


def once(rows: int, columns: int) -> None:
    """Time the parts in one of several processes; the first one prints what was found."""
    from nearplane.walk.ranks import Ranks

    ranks = Ranks.joined()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[ranks.rank % len(cores)]})
    torch.set_num_threads(1)
    found: Found = {}
    for name, work in works(rows, columns, ranks):
        with ranks.sharing_rows():
            found[name] = min(timed(work, ranks) for _ in range(REPEATS))
    if ranks.first:
        print("MEASURED", json.dumps(found), flush=True)


def timed(work: Callable[[], Any], ranks: Any) -> tuple[float, float]:
    """Return the wall seconds until all are done, and the CPU seconds of all."""
    ranks.total(0)  # all begin together
    started, spent = time.perf_counter(), time.process_time()
    work()
    milliseconds = ranks.total(round(1000 * (time.process_time() - spent)))
    return time.perf_counter() - started, milliseconds / 1000


def started(count: int, options: argparse.Namespace) -> Found:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), __file__, "--once", "--rows", str(options.rows)]
    command += ["--columns", str(options.columns)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{count} processes: exit status {run.returncode}:\n{run.stderr[-3000:]}")
    return json.loads(run.stdout.split("MEASURED", 1)[1].splitlines()[0])


def report(found: dict[int, list[Found]], cores: int) -> None:
    """Print a row for every part and number of processes."""
    first = found[min(found)]
    print("part         processes   seconds   CPU   times as fast          efficiency")
    for part in PARTS:
        for count, rounds in found.items():
            ratios = sorted(a[part][0] / b[part][0] for a, b in zip(first, rounds, strict=True))
            seconds, spent = min(each[part] for each in rounds)
            middle = median(ratios)
            spread = f"({ratios[0]:.2f} .. {ratios[-1]:.2f})"
            print(
                f"{part:12} {count:9} {seconds:9.3f} {spent:5.2f}   {middle:.2f} {spread:16} "
                f"{middle / min(count, cores):.0%}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = tiny.parse(parser, rows=192, columns=192, ranks=[2], rounds=1)
    if options.once:
        once(options.rows, options.columns)
        return
    cores = len(os.sched_getaffinity(0))
    print(f"load {os.getloadavg()[0]:.1f}, {cores} cores, {options.rows} x {options.columns}")
    found: dict[int, list[Found]] = {count: [] for count in options.ranks}
    for _ in range(options.rounds):
        for count in options.ranks:
            found[count].append(started(count, options))
    report(found, cores)


if __name__ == "__main__":
    main()

"""Rows of one layer shared out over processes of one thread each: how much faster is the solve?

    .venv/bin/python bench/ranks.py [--rows 4096] [--columns 2048] [--ranks 1 2]

Each number of processes is started by torchrun, each process on a core of its own where there are
enough. The solve is nearest plane and the residuals of the certificate: what is shared out by rows.
Whole is HPTQ's quantization of the matrix with its searches and packing, which every process
repeats. Seconds are the least of the rounds; numbers of processes take turns.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 3


def once(rows: int, columns: int) -> dict[str, float]:
    """Return the seconds of the parts, in one of several processes."""
    from nearplane.lattice import nearest_plane
    from nearplane.methods import HPTQ
    from nearplane.methods.certificate import times_triangle
    from nearplane.walk.ranks import Ranks

    ranks = Ranks.joined()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[ranks.rank % len(cores)]})
    torch.set_num_threads(1)
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(2 * columns, columns, generator=draws)
    weight = torch.randn(rows, columns, generator=draws) * 0.02
    method = HPTQ(bpw=3.125)
    basis = method.basis(x.T @ x / len(x))
    factor, step = basis.factor.float(), torch.full((1, 1), 0.01)

    def solve() -> None:
        code = nearest_plane(weight[:, basis.columns], factor, step)
        times_triangle((weight[:, basis.columns] - code * step).double(), basis.factor)

    found = {}
    with ranks.sharing_rows():
        for name, work in (("solve", solve), ("whole", lambda: method(weight, basis))):
            work()
            seconds = []
            for _ in range(REPEATS):
                ranks.total(0)  # all begin together
                started = time.perf_counter()
                work()
                ranks.total(0)
                seconds.append(time.perf_counter() - started)
            found[name] = min(seconds)
    if ranks.first:
        print("MEASURED", json.dumps(found), flush=True)
    return found


def started(count: int, rows: int, columns: int) -> dict[str, float]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), __file__, "--once", "--rows", str(rows)]
    command += ["--columns", str(columns)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.split("MEASURED", 1)[1].splitlines()[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        once(options.rows, options.columns)
        return
    print(f"load {os.getloadavg()[0]:.1f}, {len(os.sched_getaffinity(0))} cores")
    found: dict[int, list[dict[str, float]]] = {count: [] for count in options.ranks}
    for _ in range(options.rounds):
        for count in options.ranks:
            found[count].append(started(count, options.rows, options.columns))
    first = found[options.ranks[0]]
    for count, rounds in found.items():
        for part in ("solve", "whole"):
            ratios = sorted(a[part] / b[part] for a, b in zip(first, rounds, strict=True))
            least = min(each[part] for each in rounds)
            middle = ratios[len(ratios) // 2]
            print(
                f"{count} processes, {part}: {least:.2f} s, {middle:.2f} times as fast "
                f"({ratios[0]:.2f} .. {ratios[-1]:.2f})"
            )


if __name__ == "__main__":
    main()

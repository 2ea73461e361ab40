"""Products by compressed weights on the CPU: how much faster than bfloat16, and than llama.cpp?

    .venv/bin/python bench/cpu.py --quick              the rows that are judged, in a minute
    .venv/bin/python bench/cpu.py [--peers] [--json FILE]
    .venv/bin/python bench/cpu.py --tiny               that it runs, in seconds

Every row is a kernel on the linear layers of one block of a Llama (1b or 8b), copied until a pass
reads more than twice the last-level cache. Rounds go through all rows in turns, so that a busy
minute of the machine hits all; every number of threads has rounds of its own. A nearplane kernel is
timed if it gives the float64 product of the decoded weights, and if tests/kernels pass.

    Gweights/s   10^9 weights multiplied a second, at the batch: the median of the rounds
                 (10th .. 90th percentile)
    GB/s         the bytes of weights that are read for that
    bits         resident: what a weight takes in memory

--json writes these rows for the whole block ("mix": true; its `rows` are those that a matrix of all
its weights has, at as many `columns` as the model is wide) and for every shape of layer. The row
read-bandwidth reads memory and does no more: it has only `gbytes_per_s`, with `low` and `high`.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cpu_peers
import cpu_rows
import numpy as np
import tiny
import torch
from cpu_rows import Row, Throughput
from peers.pipe import Worker, WorkerError
from records import MODELS, Kind, Model

from nearplane.kernels import cpu

ROOT = Path(__file__).resolve().parents[1]
KINDS = [
    *(Kind("hptq", bits) for bits in (2.1, 3.1, 4.1)),
    *(Kind("eclq", bits) for bits in (2.1, 3.1)),
    *(Kind("ssqr", bits, share) for bits in (2, 3, 4) for share in (0.0, 0.01, 0.05)),
]
JUDGED = [Kind("hptq", 3.1), Kind("ssqr", 3, 0.01)]
QUICK = [Kind("hptq", 2.1), Kind("eclq", 3.1), Kind("eclq", 2.1), *JUDGED]
TINY = Model("tiny", hidden=256, feed_forward=512, heads=4, kv_heads=4)
QUICK_SECONDS, FEWEST_ROUNDS = 13, 5
HPTQ_FAST, ECLQ_FAST = "nearplane-hptq-fast", "nearplane-eclq-fast"
SPARSE_FAST = "nearplane-ssqr-fast 3 +1%"
HPTQ, ECLQ, SPARSE = "nearplane-hptq", "nearplane-eclq", "nearplane-ssqr 3 +1%"
BF16, READ = ("torch-bf16", None), ("read-bandwidth", None)
Q3_K = ("llama.cpp-q3_k", None)
LIMIT = ("read-bandwidth", "of its bits")
# a row (instruction set None: the best), another one, and the least ratio that is asked for
ASKED = [
    ((f"{HPTQ} 3.1", None), BF16, 3.5),
    ((f"{HPTQ} 3.1", None), Q3_K, 1.2),
    ((f"{HPTQ} 2.1", None), BF16, 4.0),
    ((f"{ECLQ} 3.1", None), (f"{HPTQ} 3.1", None), 0.85),
    ((f"{ECLQ} 2.1", None), (f"{HPTQ} 2.1", None), 0.85),
    ((SPARSE, None), LIMIT, 0.6),
    ((SPARSE, None), Q3_K, 1.0),
    ((f"{HPTQ} 3.1", "avx2"), (f"{HPTQ} 3.1", None), 0.25),
    ((SPARSE, "avx2"), (SPARSE, None), 0.25),
    *(
        each
        for isa in (None, "avx2")
        for each in [
            ((f"{HPTQ_FAST} 3.1", isa), BF16, 4.0),
            ((f"{HPTQ_FAST} 3.1", isa), ("llama.cpp-q3_k", isa), 1.3),
            ((f"{ECLQ_FAST} 3.1", isa), BF16, 4.0),
            ((f"{ECLQ_FAST} 3.1", isa), ("llama.cpp-q3_k", isa), 1.3),
            ((SPARSE_FAST, isa), ("llama.cpp-q3_k", isa), 1.0),
            ((f"{HPTQ_FAST} 2.1", isa), ("llama.cpp-q2_k", isa), 1.0),
            ((f"{ECLQ_FAST} 2.1", isa), ("llama.cpp-q2_k", isa), 1.0),
        ]
    ),
    ((f"{HPTQ_FAST} 3.1", None), (f"{HPTQ} 3.1", None), 1.5),
    ((f"{ECLQ_FAST} 3.1", None), (f"{ECLQ} 3.1", None), 1.5),
]

Samples = dict[Row, list[Throughput]]


def wanted(kernel: str, only: list[str] | None) -> bool:
    """Whether `--only` names a kernel, or a family that it is of, or a member of it."""
    return not only or any(kernel.startswith(name) or name.startswith(kernel) for name in only)


def ours(args: argparse.Namespace) -> tuple[list[Row], int]:
    """Return the rows of nearplane's kernels, and how many kernels were refused."""
    found, refused, dtype = [], 0, getattr(torch, args.activations)
    for kind in QUICK if args.quick else KINDS:
        if not wanted(kind.name, args.only):
            continue
        isas = {batch: args.isa or cpu.available()[-1:] for batch in args.batches}
        if not args.isa and (kind in JUDGED or args.quick) and 1 in isas:
            slow = ["avx2"] if args.quick else cpu.available()
            isas[1] = [isa for isa in cpu.available() if isa in (*slow, *isas[1])]
        for model, layout in itertools.product(args.models, cpu_rows.LIMITS):
            rows, red = cpu_rows.ours(kind, MODELS[model], isas, dtype, layout)
            found += rows
            refused += bool(red)
            for isa, case in red.items():
                print(f"{kind.label}, {layout}, {model}, {isa}: not timed: {case}", flush=True)
    return found, refused


def others(args: argparse.Namespace) -> tuple[list[Row], list[Worker]]:
    """Return the rows that are not ours, and the processes that run some of them."""
    models = [MODELS[name] for name in args.models]
    rows, workers = [], []
    try:
        rows.append(cpu_rows.bandwidth())
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"read-bandwidth: left out: {error}")
    for name, dtype in {"torch-fp32": torch.float32, "torch-bf16": torch.bfloat16}.items():
        if wanted(name, args.only) and not (args.quick and dtype == torch.float32):
            for model in models:
                rows += cpu_rows.dense(name, model, args.batches, dtype)
    if args.tiny:
        print(f"llama.cpp: {tiny.LEFT_OUT}")
        return rows, workers
    best, llamacpp = cpu.available()[-1], cpu_peers.LLAMACPP.kernel
    for peer in cpu_peers.PEERS:
        # another build of the library is another row only where the processor has more
        if peer.isa == best or (args.quick and peer.kernel != llamacpp):
            continue
        worker = cpu_peers.start(peer, args.peers) if wanted(peer.kernel, args.only) else None
        if worker is None:
            continue
        workers.append(worker)
        try:
            kinds = ["Q2_K", "Q3_K"] if args.quick else peer.kinds
            rows += cpu_peers.rows(peer, worker, kinds, models, args.batches)
        except WorkerError as error:
            print(f"{peer.kernel}: left out: {error}")
    return rows, workers


def measure(rows: list[Row], threads: int, rounds: int, seconds: float) -> Samples:
    """Return the rates of every row in every round; the first round is not counted."""
    samples: Samples = {row: [] for row in rows}
    started = time.perf_counter()
    for turn in range(rounds + 1):
        if turn > FEWEST_ROUNDS and time.perf_counter() - started > seconds:
            break
        for row in rows:
            rates = row.run(threads)
            if turn:
                samples[row].append(rates)
    return samples


def results(row: Row, rates: list[Throughput], threads: int) -> list[dict[str, Any]]:
    """Return what --json writes of a row: its whole block, then every shape."""
    found, model = [], row.model
    for shape in rates[0]:
        low, middle, high = np.percentile([rate[shape] for rate in rates], [10, 50, 90])
        whole = (None, None) if model is None else (model.weights // model.hidden, model.hidden)
        rows, columns = shape or whole
        reads = row.resident_bits if shape is None else row.shape_bits.get(shape, row.resident_bits)
        about = {"kernel": row.kernel, "bits": row.bits, "outliers": row.outliers}
        about |= {"model": model and model.name, "mix": shape is None}
        about |= {"rows": rows, "columns": columns, "batch": row.batch}
        about |= {"threads": threads, "isa": row.isa, "resident_bits": reads}
        speed = {"gweights_per_s": None if reads is None else middle, "low": low, "high": high}
        speed |= {"gbytes_per_s": middle if reads is None else middle * reads / 8}
        found.append({**about, **speed, "repeats": len(rates)})
    return found


def line(row: Row, whole: dict[str, Any]) -> str:
    middle = whole["gweights_per_s"] or whole["gbytes_per_s"]
    speed = spread([whole["low"], middle, whole["high"]], 1)
    if row.resident_bits is None:
        bits, speed = "", f"{'':24}{speed} GB/s"
    else:
        bits, speed = f"{row.resident_bits:.3f}", f"{speed:24}{whole['gbytes_per_s']:6.1f}"
    which = (
        f"{whole['model'] or '':5} {row.batch or '':>5} {whole['threads']:>7} {row.isa or '':12}"
    )
    return f"{row.label:30} {bits:>7}  {which} {speed}"


def spread(values: list[float] | np.ndarray, digits: int) -> str:
    low, middle, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle:>6} ({low} .. {high})"


def judge(samples: Samples, model: str) -> list[str]:
    """Return the ratios that are asked for, of the rows of one model at batch 1, by rounds."""
    rates: dict[tuple[str, str | None], np.ndarray] = {}
    for row, found in samples.items():
        if row.model is None or (row.model.name, row.batch) == (model, 1):
            isa = None if row.isa == cpu.available()[-1] else row.isa
            rates[row.label, isa] = np.array([rate[None] for rate in found])
            if row.label == SPARSE and READ in rates:
                rates[LIMIT] = rates[READ] * 8 / row.resident_bits
    said = []
    for above, below, least in ASKED:
        name = " / ".join(
            f"{key[0].removeprefix('nearplane-')} {key[1] or ''}".strip() for key in (above, below)
        )
        if above not in rates or below not in rates:
            said.append(f"  {name:42} not measured")
            continue
        low, middle, high = np.percentile(rates[above] / rates[below], [10, 50, 90])
        verdict = "yes" if middle >= least else "NO"
        said.append(f"  {name:42} {spread([low, middle, high], 2):24} asked {least:<5g}{verdict}")
    return said


def tests_pass() -> bool:
    """Whether the kernels' tests pass; a line where they are not run."""
    if not (ROOT / "tests" / "kernels").is_dir():
        print("tests/kernels: not run: there are none here")
        return True
    command = ["-m", "pytest", "tests/kernels", "-q", "-x", "-k", "not fuzz"]
    return not subprocess.run([sys.executable, *command], cwd=ROOT).returncode


def parse() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only what is judged, without tests")
    parser.add_argument("--models", nargs="+", choices=["1b", "8b"])
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1, 2 and all cores")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--isa", nargs="+", choices=cpu.available(), help="default: the best")
    parser.add_argument("--activations", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--only", nargs="+", help="kernels, llamacpp or onnxruntime")
    parser.add_argument("--peers", action="store_true", help="build the peers' environments")
    parser.add_argument("--unchecked", action="store_true", help="without running tests/kernels")
    parser.add_argument("--json", type=Path)
    args = tiny.parse(parser, quick=True, models=[TINY.name], threads=[1], rounds=1)
    if args.tiny:
        MODELS[TINY.name], cpu_rows.cache_bytes = TINY, lambda: 1 << 20
    args.models = args.models or (["1b"] if args.quick else ["1b", "8b"])
    args.batches = args.batches or ([1] if args.quick else [1, 4, 16])
    args.threads = args.threads or sorted({1, min(2, cores or 1), cores or 1})
    return args


@torch.inference_mode()
def main() -> int:
    args = parse()
    if not (args.quick or args.unchecked or tests_pass()):
        print("the kernels' tests are red: nothing is timed")
        return 1
    theirs, workers = others(args)
    mine, refused = ours(args)
    cache, load = cpu_rows.cache_bytes() / 2**20, " ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"last-level cache {cache:g} MiB, load {load}; kernels: {', '.join(cpu.available())}")
    head = f"{'kernel':30} {'bits':>7}  {'model':5} {'batch':>5} {'threads':>7} {'isa':12} "
    print(f"{head}{'  Gweights/s':24}  GB/s", flush=True)
    report = []
    for threads in args.threads:
        seconds = QUICK_SECONDS if args.quick else float("inf")
        samples = measure([*theirs, *mine], threads, args.rounds, seconds)
        for row, rates in samples.items():
            found = results(row, rates, threads)
            print(line(row, found[0]), flush=True)
            report += found
        for model in args.models if 1 in args.batches and not args.only else []:
            print(f"ratios at {threads} threads, {model}, batch 1, within a round:")
            print("\n".join(judge(samples, model)), flush=True)
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    for worker in workers:
        worker.close()
    return int(bool(refused))


if __name__ == "__main__":
    sys.exit(main())

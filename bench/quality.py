"""Every method and every peer on one model and two texts: bits, perplexity, KL, time, memory.

    .venv/bin/python bench/quality.py --model DIR --calibration FILE --text FILE [--json FILE]
    .venv/bin/python bench/quality.py --tiny

All see the same calibration tokens (bench/peers/tokens.py), and each quantizes in a process of its
own, whose wall time and peak memory are the row's. Each saved checkpoint is decoded by one decoder
into MODEL with other weights, and evaluated on the same windows by nearplane. Bits are counted
from the saved files: everything stored for the linear layers of the blocks, which all tools
quantize; embedding, norms and output head are left out for all. All tools that have groups get the
same size and symmetric codes; where a tool's own settings stay, its row says so.

Rows arrive one by one, and the JSON file is written after each. `--append` keeps the rows of an
earlier run, and `--missing` then measures only those it lacks. A peer that does not run is
listed with its reason. Rounding is chaotic: another seed of noise anywhere moves a perplexity by
1 or 2 %; read small differences so. And take a MODEL whose weights were never quantized: one that
was decoded from a GGUF file lies on a grid that llama.cpp's types of that kind simply find again.

This file imports only the standard library: a child's peak memory starts at its parent's.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import quality_rows
import tiny
from peers.environment import FOLDER, InstallError, install, peer_python
from quality_report import Store, heading, line, plot
from quality_rows import CalibrationRequest, Row
from speed import HERE, ROOT, Run, environment, machine, measure


def main() -> int:
    args = parse()
    with tiny.supplied(args, model="model", calibration="text.txt", text="text.txt", work="work"):
        for name in ("model", "calibration", "text", "work"):
            setattr(args, name, getattr(args, name).resolve())
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Measure all rows that are asked for."""
    wanted = wanted_of(args)
    rows = quality_rows.chosen(quality_rows.all_rows(wanted), args.only, args.skip)
    store = Store(args.json, settings_of(args, wanted), args.append)
    if args.missing:
        rows = [row for row in rows if not store.measured_throughput(row.name)]
    bench = Bench(args, args.work)
    if rows:
        bench.cut_tokens()
        print(heading(), flush=True)
    noted = {""}
    for row in rows:
        found = bench.result(row)
        store.add(found)
        print(line(found), flush=True)
        if row.note not in noted:
            noted.add(row.note)
            print(f"  note: {found['note']}", flush=True)
    if args.plot:
        plot(store.rows, quality_rows.LABELS, args.plot)
    return int(not any(store.measured_throughput(row.name) for row in rows) and bool(rows))


class Failed(RuntimeError):
    """A row could not be measured; the message is one line."""


class Bench:
    """Where rows are measured: the tokens, the folders, what is used for more than one row."""

    def __init__(self, args: argparse.Namespace, work: Path):
        self.args, self.work = args, work
        self.tokens = work / "tokens.safetensors"
        self.prepared: dict[bool, Run] = {}
        self.not_installed: dict[str, str] = {}
        work.mkdir(parents=True, exist_ok=True)
        (work / "reference.pt").unlink(missing_ok=True)

    def cut_tokens(self) -> None:
        """Write the calibration tokens."""
        command = [sys.executable, HERE / "tokens.py", self.args.model, self.args.calibration]
        command += [self.tokens, self.work / "calibration.txt"]
        command += ["--sequences", self.args.sequences, "--length", self.args.length]
        subprocess.run([str(word) for word in command], check=True)

    def result(self, row: Row) -> dict[str, Any]:
        """Return what there is to say of a row, also if it fails."""
        said = {"name": row.name, "method": row.method, "title": row.title, "note": row.note}
        try:
            costs = self.quantized(row) if row.command else {"seconds": 0.0, "peak_bytes": 0}
            scores = self.evaluated(self.work / row.name if row.command else "-")
        except RuntimeError as error:
            return said | {"failed": " ".join(str(error).split())}
        finally:
            if not self.args.keep:
                shutil.rmtree(self.work / row.name, ignore_errors=True)
        if scores.get("idle_bpw", 0) > 0.0005:
            said["note"] += f"; {scores['idle_bpw']:.3f} of the bits hold zeros and group numbers"
        return said | scores | costs

    def quantized(self, row: Row) -> dict[str, Any]:
        """Let a tool quantize the model; return what that cost."""
        python = self.interpreter(row.peer)
        before = [self.prepare(row.fold)] if row.method == "llamacpp" else []
        run = self.measured_throughput(row.name, python, row.command, row.fold)
        return {
            "seconds": sum(r.wall_s for r in [*before, run]),
            "peak_bytes": max(r.rss_bytes for r in [*before, run]),
            "cpu_seconds": sum(r.cpu_s for r in [*before, run]),
            "phases": {k: v for r in [*before, run] for k, v in r.phases_s.items()},
            "other_cpu_seconds": run.other_cpu_s,
        }

    def prepare(self, fold: bool) -> Run:
        """Write llama.cpp's input and importance matrix, once; their cost counts for every row."""
        if fold not in self.prepared:
            command = ("gguf_of.py", "{model}", "{tokens}", "{out}", *["--fold"][: int(fold)])
            self.prepared[fold] = self.measured_throughput(
                prepared_name(fold), sys.executable, command, fold
            )
        return self.prepared[fold]

    def measured_throughput(
        self, name: str, python: str, command: tuple[str, ...], fold: bool
    ) -> Run:
        """Run one file of bench/peers."""
        filled = {
            "{model}": str(self.args.model),
            "{tokens}": str(self.tokens),
            "{threads}": str(self.args.threads),
            "{prepared}": str(self.work / prepared_name(fold)),
        }
        words = [filled.get(word, word) for word in command[1:]]
        script = [python, str(HERE / command[0]), *words]
        return measure(name, 0, script, self.work, self.args.threads)

    def interpreter(self, peer: str) -> str:
        """Return the Python of a peer's environment, made at its first row."""
        if not peer:
            return sys.executable
        if peer not in self.not_installed:
            try:
                install(peer, self.args.peers)
            except InstallError as error:
                self.not_installed[peer] = f"not installed: {error}"
            else:
                self.not_installed[peer] = ""
        if self.not_installed[peer]:
            raise Failed(self.not_installed[peer])
        return str(peer_python(peer, self.args.peers))

    def evaluated(self, checkpoint: Path | str) -> dict[str, Any]:
        """Return a checkpoint's bits and how it predicts the text."""
        args = self.args
        command = [sys.executable, HERE / "evaluate.py", args.model, checkpoint, args.text]
        command += ["--context", args.context, "--windows", args.windows]
        command += ["--arithmetic", args.arithmetic, "--remember", self.work / "reference.pt"]
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            env=environment(args.threads),
        )
        if done.returncode:
            last = [text for text in done.stderr.splitlines() if text.strip()][-1:]
            raise Failed(f"not evaluated: {last[0].strip()[:300] if last else 'no message'}")
        return json.loads(done.stdout.splitlines()[-1])


def prepared_name(fold: bool) -> str:
    """Return the folder of llama.cpp's input."""
    return "gguf-folded" if fold else "gguf"


def wanted_of(args: argparse.Namespace) -> CalibrationRequest:
    """Return what the rows depend on."""
    columns = quality_rows.columns_of(args.model)
    group_size = args.group_size or quality_rows.group_size_for(columns)
    ablation = args.ablation
    if ablation is not None:
        ablation = ablation or [quality_rows.ABLATION_RATE]
    return CalibrationRequest(args.rates, group_size, columns, ablation or [], args.autoround_iters)


def settings_of(args: argparse.Namespace, wanted: CalibrationRequest) -> dict[str, Any]:
    """Return what was asked for; rows with the same "compared" can stand beside each other."""
    named = ("sequences", "length", "context", "windows", "arithmetic")
    compared = {name: getattr(args, name) for name in named}
    for name in ("calibration", "text"):
        compared[name] = hashlib.sha256(getattr(args, name).read_bytes()).hexdigest()[:16]
    compared |= {"model": args.model.name, "group_size": wanted.group_size}
    return {"compared": compared, "threads": args.threads, "machine": machine()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", type=Path, required=not tiny.ASKED, help="dense Hugging Face folder"
    )
    parser.add_argument(
        "--calibration", type=Path, required=not tiny.ASKED, help="the text to round on"
    )
    parser.add_argument(
        "--text", type=Path, required=not tiny.ASKED, help="the text to evaluate on"
    )
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--rates", type=float, nargs="+", default=[2.125, 2.5, 3.125, 4.125])
    parser.add_argument("--group-size", type=int, help="the largest of 128, 64, 32 that fits")
    parser.add_argument("--only", "--methods", nargs="*", metavar="NAME", help="rows or methods")
    parser.add_argument("--skip", nargs="+", default=[], metavar="NAME", help="rows or methods")
    parser.add_argument(
        "--ablation",
        type=float,
        nargs="*",
        metavar="RATE",
        help="also change the flagship's fields",
    )
    parser.add_argument("--autoround-iters", type=int, help="instead of AutoRound's default")
    parser.add_argument("--arithmetic", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write every row here")
    parser.add_argument("--append", action="store_true", help="keep the rows that are there")
    parser.add_argument("--missing", action="store_true", help="only rows that are not there yet")
    parser.add_argument("--plot", type=Path, help="a picture of perplexity against bits")
    parser.add_argument("--peers", type=Path, default=FOLDER, help="the peers' environments")
    parser.add_argument("--work", type=Path, default=ROOT / "bench-out" / "quality")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints in --work")
    small = {"sequences": 4, "length": 32, "context": 32, "windows": 2, "rates": [5.0]}
    small |= {"only": ["hptq"], "work": None, "threads": 1}
    args = tiny.parse(parser, **small)
    args.append = args.append or args.missing
    return args


if __name__ == "__main__":
    sys.exit(main())

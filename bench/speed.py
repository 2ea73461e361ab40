"""Time nearplane beside the peers: whole processes, same tokens, same threads, in turns.

    .venv/bin/python bench/speed.py --model DIR --text FILE [--repeats 3] [--json FILE]
    .venv/bin/python bench/speed.py --tiny

Each round runs nearplane (its default method at 3.125 bits per weight), GPTQModel and
llm-compressor (GPTQ, 3 bits in groups of 64: at least 3.25 stored) once, so that a busy minute of
the machine hits all.
Read the ratios, which compare within a round. "Other" is the CPU time that the rest of the machine
used meanwhile. Wall, CPU and peak memory are those of a whole process with its children.

This file imports only the standard library: a child's peak memory starts at its parent's.
"""

import argparse
import dataclasses
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import tiny
from peers.environment import FOLDER, InstallError, install, peer_python

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "bench" / "peers"


@dataclasses.dataclass(frozen=True)
class Run:
    """What one process cost."""

    tool: str
    round: int
    wall_s: float
    cpu_s: float  # user + system, children included
    rss_bytes: int  # peak of the largest process
    other_cpu_s: float | None  # CPU time of the rest of the machine
    saved_bytes: int
    phases_s: dict[str, float]


def commands(args: argparse.Namespace, tokens: Path, text: Path) -> dict[str, list[str]]:
    """Return the command line of every tool that can run here, without OUT; say what cannot."""
    model = str(args.model)
    found = {}
    if "nearplane" in args.only:
        if args.nearplane.exists():
            # OUT stands third, so that all three tools take it there: MODEL OUT or TOKENS OUT
            found["nearplane"] = [str(args.nearplane), "quantize", model, "{out}"]
            # as the others leave them
            found["nearplane"] += ["--keep", "embedding", "--keep", "head"]
            found["nearplane"] += ["--method", args.method, "--bpw", str(args.bpw)]
            found["nearplane"] += ["--calibration", str(text)]
            found["nearplane"] += ["--sequences", str(args.sequences), "--length", str(args.length)]
        else:
            print(f"nearplane: skipped: {args.nearplane} does not exist")
    for peer in ("gptqmodel", "llmcompressor"):
        if peer not in args.only:
            continue
        try:
            install(peer, args.peers)
        except InstallError as error:
            print(f"{peer}: skipped: {error}")
            continue
        script = str(HERE / f"{peer}_run.py")
        python = str(peer_python(peer, args.peers))
        found[peer] = [python, script, model, str(tokens), "{out}"]
    return found


def measure(tool: str, turn: int, command: list[str], work: Path, threads: int) -> Run:
    """Run one tool once and return its cost; raise RuntimeError with its last line on failure."""
    out = work / tool
    shutil.rmtree(out, ignore_errors=True)
    command = [part.replace("{out}", str(out)) for part in command]
    log = work / f"{tool}.{turn}"
    before = machine_cpu_s()
    start = time.perf_counter()
    with log.with_suffix(f".{turn}.out").open("w") as stdout:
        with log.with_suffix(f".{turn}.err").open("w") as stderr:
            process = subprocess.Popen(
                command, stdout=stdout, stderr=stderr, env=environment(threads), cwd=work
            )
            _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    after = machine_cpu_s()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = Path(stderr.name).read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "no message")
        raise RuntimeError(f"exit status {process.returncode}: {last.strip()[:300]}")
    cpu = usage.ru_utime + usage.ru_stime
    kilo = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return Run(
        tool=tool,
        round=turn,
        wall_s=wall,
        cpu_s=cpu,
        rss_bytes=usage.ru_maxrss * kilo,
        other_cpu_s=None if before is None or after is None else max(0.0, after - before - cpu),
        saved_bytes=sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
        phases_s=phases(Path(stdout.name)),
    )


def environment(threads: int) -> dict[str, str]:
    """Return the environment that gives every tool the same threads and no network or GPU."""
    count = str(threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    # GPTQModel raises ValueError with fewer than two workers
    workers = {"GPTQMODEL_CPU_WORKERS": str(max(2, threads)), "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | dict.fromkeys(names, count) | dict.fromkeys(offline, "1") | workers


def machine_cpu_s() -> float | None:
    """Return the CPU seconds all processes of this machine have used; None where unknown."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in fields[:7])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def phases(stdout: Path) -> dict[str, float]:
    """Return the seconds of the phases that a peer's script printed as its last JSON line."""
    for line in reversed(stdout.read_text(errors="replace").splitlines()):
        if line.startswith('{"peer"'):
            return json.loads(line)["seconds"]
    return {}


def spread(values: list[float], digits: int = 1) -> str:
    """Return "median (min-max)"."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def ratios(runs: list[Run], tool: str, baseline: str, field: str) -> list[float]:
    """Return tool / baseline of one field, for every round in which both ran."""
    value = {(run.tool, run.round): getattr(run, field) for run in runs}
    turns = sorted({run.round for run in runs})
    pairs = [(value.get((tool, turn)), value.get((baseline, turn))) for turn in turns]
    return [theirs / ours for theirs, ours in pairs if theirs is not None and ours]


def table(runs: list[Run]) -> str:
    """Return the costs and, per round, the ratios to the first tool as aligned text."""
    tools = list(dict.fromkeys(run.tool for run in runs))
    head = ["tool", "wall s", "CPU s", "peak RSS GiB", "other CPU s", "saved MB"]
    head += [f"wall / {tools[0]}", f"CPU / {tools[0]}"]
    rows = [head]
    for tool in tools:
        mine = [run for run in runs if run.tool == tool]
        other = [run.other_cpu_s for run in mine if run.other_cpu_s is not None]
        rows.append(
            [
                tool,
                spread([run.wall_s for run in mine]),
                spread([run.cpu_s for run in mine]),
                spread([run.rss_bytes / 2**30 for run in mine], 2),
                spread(other) if other else "-",
                f"{mine[-1].saved_bytes / 1e6:.1f}",
                spread(ratios(runs, tool, tools[0], "wall_s"), 2),
                spread(ratios(runs, tool, tools[0], "cpu_s"), 2),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def machine() -> dict[str, object]:
    """Return what a reader needs to judge the numbers."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "commit": commit.stdout.strip(),
        "command": sys.argv,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", type=Path, required=not tiny.ASKED, help="dense Hugging Face folder"
    )
    parser.add_argument("--text", type=Path, required=not tiny.ASKED, help="calibration text")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every run here")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--method", default="eclq", help="of nearplane")
    parser.add_argument("--bpw", type=float, default=3.125, help="of nearplane's method")
    parser.add_argument("--nearplane", type=Path, default=ROOT / ".venv" / "bin" / "nearplane")
    parser.add_argument("--peers", type=Path, default=FOLDER, help="the peers' environments")
    parser.add_argument("--work", type=Path, default=ROOT / "bench-out" / "speed")
    tools = ["nearplane", "gptqmodel", "llmcompressor"]
    parser.add_argument("--only", nargs="+", choices=tools, default=tools)
    small = {"only": ["nearplane"], "repeats": 1, "sequences": 4, "length": 32, "bpw": 5.0}
    return tiny.parse(parser, **small, work=None, threads=1)


def main() -> int:
    args = parse()
    with tiny.supplied(args, model="model", text="text.txt", work="work"):
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Let all tools run in turns."""
    args.model, args.work = args.model.resolve(), args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    tokens, text = args.work / "tokens.safetensors", args.work / "calibration.txt"
    cut = [sys.executable, str(HERE / "tokens.py"), str(args.model), str(args.text)]
    cut += [str(tokens), str(text)]
    cut += ["--sequences", str(args.sequences), "--length", str(args.length)]
    subprocess.run(cut, check=True)

    found = commands(args, tokens, text)
    report: dict[str, object] = {"machine": machine(), "threads": args.threads}
    runs: list[Run] = []
    failed: dict[str, str] = {}
    for turn in range(args.repeats):
        for tool, command in found.items():
            if tool in failed:
                continue
            try:
                run = measure(tool, turn, command, args.work, args.threads)
            except RuntimeError as error:
                failed[tool] = str(error)
                print(f"round {turn}: {tool}: failed: {error}", flush=True)
                continue
            runs.append(run)
            cost = f"{run.wall_s:.1f} s wall, {run.cpu_s:.1f} s CPU"
            print(f"round {turn}: {tool}: {cost}, {run.rss_bytes / 2**30:.2f} GiB", flush=True)
            report |= {"runs": [dataclasses.asdict(run) for run in runs], "failed": failed}
            if args.json:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(report, indent=2) + "\n")
    if runs:
        print(table(runs))
    return int(bool(failed) or not runs)


if __name__ == "__main__":
    sys.exit(main())

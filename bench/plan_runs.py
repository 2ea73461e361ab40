"""What a plan says beside what the run then took: seconds of processor time and peak memory.

    .venv/bin/python bench/plan_runs.py MODEL TEXT [--methods hptq eclq] [--bpw 3.125]
        [--sequences 16] [--length 512] [--rounds 1] [--ranks 1]
    .venv/bin/python bench/plan_runs.py --tiny

One thread a process, so that processor time is the time an idle machine would take; with several
processes it is that of all together, and memory is not compared. MODEL `random` is a model
of random weights in float32, 4 blocks of 512 columns. Planned before and after each run: the
machine may have become slower in between.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import tiny
import torch

from nearplane.methods import METHODS
from nearplane.plan.estimate import Estimate, estimate
from nearplane.plan.survey import survey

ROOT = Path(__file__).resolve().parents[1]


def random_model(place: Path, tokenizer: Path) -> Path:
    """Write a model that reads as `tokenizer` does; return its directory."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=49152,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(place)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, place)
    return place


def took(words: list[str], ranks: int) -> tuple[float, float]:
    """Return the processor seconds and the peak bytes of a run of nearplane."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    many = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    command = [sys.executable, "-m", *(many if ranks > 1 else []), "nearplane", "quantize", *words]
    run = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(run.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    # kilobytes, on Linux
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def said(name: str, plans: list[Estimate], seconds: float, peak: float) -> str:
    planned = sum(plan.spent_seconds for plan in plans) / len(plans)
    memory = plans[0].peak_bytes
    spent = f"{name:20} planned {planned:6.0f} s, took {seconds:6.0f}: {planned / seconds:5.2f}"
    if plans[0].run.ranks > 1:
        return f"{spent}; {plans[0].run.ranks} processes"
    return f"{spent}; planned {memory / 1e9:5.2f} GB, peak {peak / 1e9:5.2f}: {memory / peak:5.2f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    count = "?" if tiny.ASKED else None
    parser.add_argument("model", nargs=count)
    parser.add_argument("text", nargs=count)
    parser.add_argument("--tokenizer", help="the directory whose tokenizer a random model takes")
    parser.add_argument("--methods", nargs="+", default=["hptq", "eclq"])
    parser.add_argument("--bpw", type=float, default=3.125)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=1)
    return tiny.parse(parser, methods=["hptq"], sequences=2, length=32)


def compare(model: Path, name: str, place: Path, options: argparse.Namespace) -> None:
    """Print what is planned for a run of a method, and what it took."""
    found = survey(model, METHODS[name](bpw=options.bpw))  # pyright: ignore
    asked = (options.sequences, options.length, options.ranks)
    plans = [estimate(found, *asked)]
    words = [model, place / "out", "--method", name, "--bpw", options.bpw]
    words += ["--calibration", options.text, "--threads", 1]
    words += ["--sequences", options.sequences, "--length", options.length]
    seconds, peak = took(list(map(str, words)), options.ranks)
    shutil.rmtree(place / "out")
    plans.append(estimate(found, *asked))
    print(said(f"{model.name} {name}", plans, seconds, peak), flush=True)
    groups = plans[-1].groups.items()
    print("  " + ", ".join(f"{group} {value:.1f}" for group, value in groups))


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.1f}, {len(os.sched_getaffinity(0))} cores")
    supplied = tiny.supplied(options, model="model", text="text.txt")
    with supplied, tempfile.TemporaryDirectory() as place:
        model = Path(options.model)
        if options.model == "random":
            model = random_model(Path(place) / "model", Path(options.tokenizer))
        for _ in range(options.rounds):
            for name in options.methods:
                compare(model, name, Path(place), options)


if __name__ == "__main__":
    main()

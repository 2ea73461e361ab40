"""Tokens a second of a whole model at batch 1: what compressed layers give beside all the rest.

    .venv/bin/python bench/generate.py --quick
    .venv/bin/python bench/generate.py [--smollm2 DIR] [--peers] [--json FILE]

The model is a Llama of random weights, of the shape of Llama-3.2-1B with a vocabulary of 32,000 and
an output layer of its own; with --smollm2, also one of the shape that DIR/config.json tells. Every
row is a process of its own, which answers requests in turns and sleeps between them.

    generate    tokens a second after the first, by transformers' generate, greedily: the median of
                the rounds (10th .. 90th percentile)
    bare        the same by the model's forward alone
    products    milliseconds of a token in the layers of the blocks, one by one with nothing
    head, rest  between; in the output layer; and what a token of the bare model takes beyond them
    memory      growth of the process's memory from before the model was made, in MB
    bits        a compressed weight takes in memory

llama.cpp decodes by itself, with Q3_K in all layers and, where our output layer and embedding are
bfloat16, these in its own bfloat16.
"""

import argparse
import json
import os
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cpu_peers
import numpy as np
import tiny
from peers.environment import FOLDER
from peers.pipe import Worker, WorkerError, meet_rate
from records import Model

HERE = Path(__file__).resolve().parent
LLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
# method, nominal bits and share of outliers
KINDS = {"hptq": (3.1, 0.0), "eclq": (3.1, 0.0), "ssqr": (3, 0.01)}
ASKED = 2.5  # times bf16, with the output layer left in bfloat16
MEASURES = ("generate", "bare")


@dataclass
class Row:
    """One model in one process; `head` tells whether its output layer is compressed, too."""

    model: str
    kind: str
    head: bool
    worker: Worker
    bits: float = 16.0
    memory: int = 0
    speeds: dict[str, list[float]] = field(default_factory=lambda: {"generate": [], "bare": []})
    parts: list[dict[str, float]] = field(default_factory=list)

    def tell(self) -> dict[str, Any]:
        """Return the row as --json writes it."""
        about = {"model": self.model, "kind": self.kind, "head_compressed": self.head}
        about |= {"resident_bits": self.bits, "rss_growth_bytes": self.memory}
        for name, speeds in self.speeds.items():
            low, middle, high = np.percentile(speeds, [10, 50, 90]) if speeds else (None,) * 3
            about[name] = {"tokens_per_s": middle, "low": low, "high": high}
        for part in self.parts[0] if self.parts else ():
            about[f"{part}_ms"] = 1e3 * statistics.median(each[part] for each in self.parts)
        return about


def ours(args: argparse.Namespace, name: str, config: dict[str, Any]) -> list[Row]:
    rows = []
    for kind in args.kinds:
        heads = [False] if kind == "bf16" or args.quick else [False, True]
        for head in heads:
            log = FOLDER / f"generate-{kind}.log"
            row = Row(name, kind, head, Worker(sys.executable, HERE / "generate_worker.py", log))
            bits, outliers = KINDS.get(kind, (16, 0.0))
            said = {"kind": kind, "bits": bits, "outliers": outliers, "head": head}
            made = row.worker("build", config=config, **said)
            row.bits, row.memory = made["resident_bits"], made["memory"]
            rows.append(row)
    return rows


def llamacpp(args: argparse.Namespace, name: str, config: dict[str, Any]) -> list[Row]:
    """Return the rows of llama.cpp, made once and kept; none where its blocks do not fit."""
    if config["hidden_size"] % 256:
        print(f"{name}: llama.cpp left out: blocks of 256 do not divide {config['hidden_size']}")
        return []
    heads = config["num_attention_heads"], config["num_key_value_heads"]
    shape = Model(name, config["hidden_size"], config["intermediate_size"], *heads)
    rows = []
    for head in [False] if args.quick else [False, True]:
        worker = cpu_peers.start(cpu_peers.LLAMACPP, args.peers)
        if worker is None:
            return []
        ends, blocks, words = "" if head else "BF16", config["num_hidden_layers"], "vocab_size"
        path = cpu_peers.gguf_path(f"generate-{name}-{ends or 'Q3_K'}")
        bits = cpu_peers.make_gguf(worker, path, "Q3_K", shape, blocks, config[words], ends)
        worker.close()
        # the process that makes a model keeps memory that has nothing to do with it
        worker = cpu_peers.start(cpu_peers.LLAMACPP, False)
        assert worker
        before = worker("memory")
        worker("load", name=name, path=path, context=args.prompt + args.tokens)
        worker("generate", name=name, prompt=4, tokens=4, threads=1)
        memory = worker("memory") - before
        rows.append(Row(name, "llama.cpp-q3_k", head, worker, bits, memory))
    return rows


def measure(rows: list[Row], args: argparse.Namespace, threads: int) -> None:
    """Add one round to every row."""
    wanted = {"prompt": args.prompt, "tokens": args.tokens, "threads": threads}
    for row in rows:
        peer = row.kind.startswith("llama.cpp")
        for name in MEASURES[:1] if peer else MEASURES:
            meet_rate()
            seconds = row.worker(name, **wanted, **({"name": row.model} if peer else {}))[1:]
            row.speeds[name].append(len(seconds) / sum(seconds))
        if not peer:
            row.parts.append(row.worker("parts", **wanted))


def ratio(row: Row, other: Row, measure: str = "generate") -> tuple[float, float, float]:
    """Return the 10th, 50th and 90th percentile of the ratios of two rows' speeds by rounds."""
    ours, theirs = np.array(row.speeds[measure]), np.array(other.speeds["generate"])
    low, middle, high = np.percentile(ours / theirs, [10, 50, 90])
    return low, middle, high


def table(rows: list[Row]) -> list[str]:
    head = f"{'model':8} {'kind':15} {'head':10} {'bits':>6} {'memory':>7}  "
    head += f"{'generate, tokens/s':24} {'bare, tokens/s':24} products   head   rest"
    lines = [head]
    for row in rows:
        told, speeds = row.tell(), []
        for name in MEASURES:
            numbers = [told[name][key] for key in ("tokens_per_s", "low", "high")]
            text = "" if numbers[0] is None else "{:6.1f} ({:.1f} .. {:.1f})".format(*numbers)
            speeds.append(f"{text:24}")
        parts = [told.get(f"{part}_ms") for part in ("products", "head", "rest")]
        spent = " ".join("" if part is None else f"{part:6.2f}" for part in parts)
        output = "compressed" if row.head else "bf16"
        lines.append(
            f"{row.model:8} {row.kind:15} {output:10} {row.bits:6.3f} {row.memory / 1e6:7.0f}  "
            f"{' '.join(speeds)}   {spent}".rstrip()
        )
    return lines


def ratios(rows: list[Row]) -> list[dict[str, Any]]:
    """Return every compressed row's speed over bf16's, and over llama.cpp's with such a head."""
    found = []
    for row in rows:
        for other in rows:
            base = other.kind == "bf16" and row.kind != "bf16"
            peer = other.kind.startswith("llama.cpp") and other.head == row.head
            if (base or (peer and row.kind in KINDS)) and row.model == other.model:
                low, middle, high = ratio(row, other)
                names = {"model": row.model, "kind": row.kind, "head_compressed": row.head}
                numbers = {"ratio": middle, "low": low, "high": high}
                found.append({**names, "over": other.kind, **numbers})
    return found


def told(one: dict[str, Any]) -> str:
    head = "head compressed" if one["head_compressed"] else "head in bf16"
    asked = (one["model"], one["over"], one["head_compressed"]) == ("1b", "bf16", False)
    asked = asked and one["kind"] in KINDS
    verdict = f"  asked {ASKED:g} {'yes' if one['ratio'] >= ASKED else 'NO'}" if asked else ""
    numbers = f"{one['ratio']:5.2f} ({one['low']:.2f} .. {one['high']:.2f})"
    return f"  {one['model']}, {head}: {one['kind']} / {one['over']}: {numbers}{verdict}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="bf16, HPTQ and llama.cpp, few tokens")
    parser.add_argument("--smollm2", type=Path, metavar="DIR", help="a local model's folder")
    parser.add_argument("--kinds", nargs="+", choices=["bf16", *KINDS])
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peers", action="store_true", help="build llama.cpp's environment")
    parser.add_argument("--json", type=Path)
    args = tiny.parse(parser, quick=True, tokens=4, rounds=1, prompt=4, threads=1)
    args.kinds = args.kinds or (["bf16", "hptq"] if args.quick else ["bf16", *KINDS])
    args.tokens = args.tokens or (16 if args.quick else 64)
    args.rounds = args.rounds or (3 if args.quick else 7)
    return args


def main() -> None:
    args = parse()
    models = {"tiny": tiny.CONFIG} if args.tiny else {"1b": LLAMA}
    if args.smollm2 and not args.quick:
        models["smollm2"] = json.loads((args.smollm2 / "config.json").read_text())
    report = {"threads": args.threads, "prompt": args.prompt, "tokens": args.tokens}
    report |= {"rows": [], "ratios": []}
    for name, config in models.items():
        rows = ours(args, name, config)
        try:
            if args.tiny:
                raise WorkerError(tiny.LEFT_OUT)
            rows += llamacpp(args, name, config)
        except WorkerError as error:
            print(f"{name}: llama.cpp left out: {error}")
        for _ in range(args.rounds):
            measure(rows, args, args.threads)
        compared = ratios(rows)
        print("\n".join([*table(rows), "ratios within a round:", *map(told, compared)]), flush=True)
        report["rows"] += [row.tell() for row in rows]
        report["ratios"] += compared
        for row in rows:
            row.worker.close()
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

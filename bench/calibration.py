"""What more calibration brings: divergence and time by the number and the length of sequences.

    .venv/bin/python bench/calibration.py --model DIR --calibration FILE --text FILE
        [--sizes 8x512 32x512 16x1024 8x2048 ...] [--work DIR] [--json FILE]
    .venv/bin/python bench/calibration.py --tiny

MODEL is quantized by the default method on SEQUENCES x LENGTH tokens of the calibration, and
compared with MODEL on a text that is not calibrated on. "a column" is tokens for each column of the
widest layer, "of most" the divergence over that of the size with most tokens; the times are of one
run each, on this machine as it was. Checkpoints stay in WORK, and one that is there is not made
again.
"""

import argparse
import json
import math
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import tiny

import nearplane as npl
from nearplane.cli.evaluate import open_any
from nearplane.cli.quiet import quiet
from nearplane.evaluate.divergence import divergence
from nearplane.evaluate.perplexity import WindowOptions, text_windows
from nearplane.pipeline import Watcher

SIZES = ["4x512", "8x512", "16x512", "32x512", "16x1024", "8x2048", "32x2048", "128x2048"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=not tiny.ASKED)
    parser.add_argument("--calibration", type=Path, required=not tiny.ASKED)
    parser.add_argument("--text", type=Path, required=not tiny.ASKED)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="SEQUENCESxLENGTH")
    parser.add_argument("--bpw", type=float, default=3.125)
    parser.add_argument("--damping", type=float, default=npl.ECLQ().damping)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--work", type=Path, help="where checkpoints stay")
    parser.add_argument("--json", type=Path)
    small = {"bpw": 5.0, "context": 32, "windows": 2}
    return tiny.parse(parser, sizes=["2x32", "4x16", "4x32"], **small)


def quantized(args: argparse.Namespace, size: str, work: Path) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint of a size and its report; made now if it is not there."""
    out = work / f"{args.model.name}-{size}"
    if not out.exists():
        sequences, length = map(int, size.split("x"))
        npl.quantize(
            args.model,
            out,
            npl.ECLQ(bpw=args.bpw, damping=args.damping),
            args.calibration,
            sequences=sequences,
            length=length,
            watcher=Watcher(lambda said: print(f"  {said}", flush=True)),
        )
    return out, json.loads((out / "report.json").read_text())


def row(args: argparse.Namespace, size: str, work: Path) -> dict[str, Any]:
    """Return what came of one size."""
    out, report = quantized(args, size, work)
    account = report["recipe"]["calibration"]
    widest = max(layer["columns"] for layer in report["layers"])
    (model, tokenizer), (reference, _) = (open_any(str(d), True) for d in (out, args.model))
    cut = WindowOptions(args.context, None, args.windows)
    found = divergence(model, reference, text_windows(args.text, tokenizer, cut), cut)
    return {
        "size": f"{account['sequences']}x{account['length']}",
        "tokens": account["used"],
        "tokens_a_column": account["used"] / widest,
        "seconds": report["seconds"],
        "perplexity": found.model.perplexity,
        "kl": found.kl,
        "bpw": report["bits"]["bpw"],
        "arithmetic": report["recipe"].get("arithmetic"),
    }


def main() -> None:
    args = arguments()
    quiet()
    made = tempfile.TemporaryDirectory() if args.work is None else nullcontext(args.work)
    with tiny.supplied(args, model="model", calibration="text.txt", text="text.txt"), made as work:
        Path(work).mkdir(parents=True, exist_ok=True)
        # the size of most tokens first: the others are compared with it
        sizes = sorted(args.sizes, key=lambda size: -math.prod(map(int, size.split("x"))))
        print(f"{args.model.name}\n{'size':>10} {'tokens':>8} {'a column':>8} {'KL':>8} ", end="")
        print(f"{'of most':>8} {'perplexity':>10} {'seconds':>8}", flush=True)
        rows = []
        for size in sizes:
            rows.append(row(args, size, Path(work)))
            found = rows[-1] | {"of_most": rows[-1]["kl"] / rows[0]["kl"]}
            print(
                "{size:>10} {tokens:>8} {tokens_a_column:>8.1f} {kl:>8.4f} {of_most:>8.3f} "
                "{perplexity:>10.3f} {seconds:>8.0f}".format(**found),
                flush=True,
            )
            if args.json:
                args.json.write_text(
                    json.dumps({"settings": vars(args), "rows": rows}, default=str)
                )


if __name__ == "__main__":
    main()

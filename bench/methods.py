"""Every method on one model and two texts: bits counted from files, perplexity, time.

    .venv/bin/python bench/methods.py --model DIR --calibration FILE --text FILE [--json FILE]

All methods see the same calibration tokens and are evaluated on the same windows. Rounding is
chaotic: another seed of noise anywhere moves a perplexity by 1 or 2 %; read small differences so.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import nearplane as npl
from nearplane.evaluate.bits import account
from nearplane.evaluate.perplexity import Cut, cut_text, perplexity
from nearplane.walk.source import open_source

METHODS = [
    npl.RTN(bits=3, group_size=64),
    npl.GPTQ(bits=3, group_size=64),
    npl.SSQR(bits=3, group_size=64, outliers=0.01),
    npl.HRTN(bpw=3.125),
    npl.HPTQ(bpw=3.125),
    npl.WaterSIC(bpw=3.125),
    npl.HPTQ(bpw=2.125),
    npl.WaterSIC(bpw=2.125),
]


def main() -> None:
    wanted = arguments()
    cut = Cut(context=wanted.context, windows=wanted.windows)
    source = open_source(wanted.model)
    windows = cut_text(wanted.text, source.tokenizer, cut)
    rows = [{"method": "as it is", "perplexity": perplexity(source.model, windows, cut).perplexity}]
    show(rows[0])
    for method in METHODS:
        with tempfile.TemporaryDirectory() as place:
            rows.append(measured(method, wanted, Path(place) / "out", windows, cut))
        show(rows[-1])
    if wanted.json:
        settings = {name: str(value) for name, value in vars(wanted).items()}
        Path(wanted.json).write_text(json.dumps({"settings": settings, "rows": rows}, indent=2))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True, help="the text to evaluate on")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--json")
    return parser.parse_args()


def measured(method, wanted: argparse.Namespace, out: Path, windows, cut: Cut) -> dict:
    """Quantize, load and evaluate with one method."""
    began = time.perf_counter()
    cuts = {"sequences": wanted.sequences, "length": wanted.length}
    report = npl.quantize(wanted.model, out, method, wanted.calibration, **cuts)
    seconds = time.perf_counter() - began
    found = perplexity(npl.load(out, dequantize=True), windows, cut)
    return {
        **method.recipe(),
        "stored_bpw": account(out).bpw,
        "perplexity": found.perplexity,
        "relative_loss": report["relative_loss"],
        "loss_over_bound": report["loss_over_bound"],
        "seconds": seconds,
    }


def show(row: dict) -> None:
    """Print one line."""
    if "stored_bpw" not in row:
        print(f"{'as it is':34}{'':8}{row['perplexity']:9.2f}", flush=True)
        return
    options = [f"{row[k]:g} {k}" for k in ("bpw", "bits", "group_size", "outliers") if k in row]
    name = f"{row['method']} ({', '.join(options)})"
    print(
        f"{name:34.34}{row['stored_bpw']:8.4f}{row['perplexity']:9.2f}{row['seconds']:7.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()

"""What minima of groups bring in GGUF's block types: loss at equal or nearly equal bits.

    .venv/bin/python bench/block_types.py --model DIR --calibration FILE [--json FILE]
    .venv/bin/python bench/block_types.py --tiny

Each layer is rounded onto a type with minima of their own, and beside it onto the same type with
its minimum at the lowest level (Q2_K, Q4_K, Q5_K), or onto the type without one (Q4_0, Q5_0 for
Q4_1, Q5_1, which have half a bit more). Its rows are mixed by a random orthogonal matrix before:
Hessian and sizes of columns stay, and no grid of a file that was quantized already is left. Losses
are under the Hessian of the original model; blocks are taken evenly over the depth.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny
from rotation import layers, rotation

from nearplane.codes.block_types import GRIDS, BlockGrid
from nearplane.methods import GGUF

BESIDE = {"Q2_K": "Q2_K", "Q4_K": "Q4_K", "Q5_K": "Q5_K", "Q4_1": "Q4_0", "Q5_1": "Q5_0"}


class AtLowest(GGUF, registered=False):
    """The method whose types have their minimum at the lowest level."""

    def grid(self, columns: int) -> BlockGrid:
        return replace(super().grid(columns), minima=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=not tiny.ASKED)
    parser.add_argument("--calibration", required=not tiny.ASKED)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--json")
    return tiny.parse(parser, sequences=2, length=32, blocks=1)


def measure(wanted: argparse.Namespace) -> list[dict[str, Any]]:
    """Print the two losses of every layer and type; return these rows."""
    rows = []
    for name, weight, hessian in layers(wanted):
        mixed = (rotation(len(weight)) @ weight.double()).float()
        fitting = [kind for kind in BESIDE if GRIDS[kind].fits(weight.shape[1])]
        for kind in fitting:
            pair = GGUF(type=kind), AtLowest(type=BESIDE[kind])
            own, beside = (float(method(mixed, hessian).loss.sum()) for method in pair)
            rows.append({"layer": name, "type": kind, "ratio": own / beside})
            print(f"{name:40} {kind:5} {own:.4g} {BESIDE[kind]:5} {beside:.4g}", flush=True)
    return rows


def main() -> None:
    wanted = arguments()
    with tiny.supplied(wanted, model="model", calibration="text.txt"):
        rows = measure(wanted)
    for kind, beside in BESIDE.items():
        found = [row["ratio"] for row in rows if row["type"] == kind]
        if found:
            middle, least, most = statistics.median(found), min(found), max(found)
            print(
                f"{kind}, {GRIDS[kind].bits} bits, to {beside}, {GRIDS[beside].bits}: losses are "
                f"{middle:.3f} of its ({least:.3f} .. {most:.3f} in {len(found)} layers)"
            )
    if wanted.json:
        report = {"settings": vars(wanted), "rows": rows}
        Path(wanted.json).write_text(json.dumps(report, indent=2, default=str))


if __name__ == "__main__":
    main()

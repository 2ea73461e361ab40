"""What a rotation of the inputs would bring: loss at equal stored bits, layer by layer.

    .venv/bin/python bench/rotation.py --model DIR --calibration FILE [--json FILE]
    .venv/bin/python bench/rotation.py --tiny

Each layer is rounded as it is and with its inputs turned by a random orthogonal matrix, which does
what a Hadamard rotation does without asking for powers of two: weights become Gaussian, pivots
nearly equal. "bits" is ½ log₂ of the loss ratio: what the rotation is worth a weight, below 0 where
it costs. Hessians are the original model's; blocks are taken evenly over the depth.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import tiny
import torch

import nearplane as npl
from nearplane.model.open_model import open_model
from nearplane.walk.calibration import CalibrationRequest, calibrate
from nearplane.walk.capture import PausedRun
from nearplane.walk.forward_pass import ForwardPass
from nearplane.walk.hessian import HessianSum
from nearplane.walk.trace import trace_model


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=not tiny.ASKED)
    parser.add_argument("--calibration", required=not tiny.ASKED)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--bpw", type=float, nargs="+", default=[2.125, 3.125])
    parser.add_argument("--json")
    return tiny.parse(parser, sequences=2, length=32, blocks=1, bpw=[3.125])


def layers(wanted: argparse.Namespace):
    """Yield name, weight and Hessian of every layer of a few blocks."""
    source = open_model(wanted.model)
    size = CalibrationRequest(wanted.sequences, wanted.length)
    tokens, _ = calibrate(wanted.calibration, source.tokenizer, size)
    trace = trace_model(source.model, tokens)
    whole, count = ForwardPass(source.model, trace, tokens), len(trace.blocks)
    whole.go_on()
    chosen = {round((i + 0.5) * count / wanted.blocks) for i in range(wanted.blocks)}
    for index, block in enumerate(trace.blocks):
        stages = trace.stages[index]
        run = PausedRun(block, [s.layers[0].module for s in stages], whole.expect(index))
        for stage in stages:
            inputs = run.to(stage.layers[0].module)
            if index in chosen:
                moment = HessianSum(inputs.shape[-1])
                moment.add(inputs)
                for layer in stage.layers:
                    yield layer.name, layer.weight().detach().float(), moment.mean()
        whole.go_on(run.finish())


def rotation(n: int) -> torch.Tensor:
    """Return a random orthogonal matrix."""
    random = torch.Generator().manual_seed(n)
    return torch.linalg.qr(torch.randn(n, n, generator=random, dtype=torch.float64)).Q


def measure(wanted: argparse.Namespace) -> list[dict[str, Any]]:
    """Print what the rotation is worth in every layer; return these rows."""
    rows = []
    for name, weight, hessian in layers(wanted):
        turn = rotation(len(hessian))
        turned = (weight.double() @ turn).float(), (turn.T @ hessian.double() @ turn).float()
        for bpw in wanted.bpw:
            for method in (npl.HPTQ(bpw), npl.ECLQ(bpw)):
                plain, rotated = (method(*pair) for pair in ((weight, hessian), turned))
                ratio = float(plain.loss.sum() / rotated.loss.sum())
                bits = float(torch.log2(torch.tensor(ratio))) / 2
                rows.append({"layer": name, "method": method.name, "bpw": bpw, "bits": bits})
                print(f"{name:40} {method.name:6} {bpw:6.3f} {bits:+.3f}", flush=True)
    return rows


def main() -> None:
    wanted = arguments()
    with tiny.supplied(wanted, model="model", calibration="text.txt"):
        rows = measure(wanted)
    for method in ("hptq", "eclq"):
        for bpw in wanted.bpw:
            found = [r["bits"] for r in rows if (r["method"], r["bpw"]) == (method, bpw)]
            print(
                f"{method} at {bpw}: median {statistics.median(found):+.3f} bits, "
                f"{min(found):+.3f} .. {max(found):+.3f} of {len(found)} layers"
            )
    if wanted.json:
        report = {"settings": vars(wanted), "rows": rows}
        Path(wanted.json).write_text(json.dumps(report, indent=2, default=str))


if __name__ == "__main__":
    main()

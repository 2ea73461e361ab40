"""Quantize a model with GPTQModel and save it; runs inside GPTQModel's own environment.

    gptqmodel_run.py MODEL TOKENS.safetensors OUT [--order static|group-aware|natural]

Prints one JSON line with the seconds of each phase.

Settings: 3 bits, groups of 64, symmetric, damping 0.01, checkpoint format "gptq" (v1).
GPTQModel's defaults differ in two: damping 0.05 and `act_group_aware` (its own group-aware order).
`--order static` is the order llm-compressor uses: columns by decreasing Hessian diagonal, steps
fixed beforehand on the groups of the original columns, so that g_idx stays k // 64.
"""

import argparse
import json
import os
import sys
import time

THREADS = os.environ.setdefault("OMP_NUM_THREADS", "2")
# with the default on two cores GPTQModel raises a ValueError about a virtual pool
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

started = time.perf_counter()
import torch  # noqa: E402
from gptqmodel import GPTQModel, QuantizeConfig  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

ORDERS = {
    "static": {"desc_act": True, "static_groups": True, "act_group_aware": False},
    "group-aware": {"desc_act": False, "static_groups": False, "act_group_aware": True},
    "natural": {"desc_act": False, "static_groups": False, "act_group_aware": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("tokens", help='safetensors file with int "tokens" (sequences, length)')
    parser.add_argument("out")
    parser.add_argument("--order", choices=list(ORDERS), default="static")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--damping", type=float, default=0.01)
    args = parser.parse_args()
    torch.set_num_threads(int(THREADS))
    marks = [started, time.perf_counter()]

    config = QuantizeConfig(
        bits=args.bits,
        group_size=args.group_size,
        sym=True,
        damp_percent=args.damping,
        device="cpu",
        **ORDERS[args.order],
    )
    model = GPTQModel.load(args.model, config)
    marks.append(time.perf_counter())

    tokens = load_file(args.tokens)["tokens"].long()
    samples = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in tokens]
    model.quantize(samples, batch_size=1)
    marks.append(time.perf_counter())

    model.save(args.out)
    marks.append(time.perf_counter())

    phases = ["import", "load", "quantize", "save"]
    seconds = {
        name: round(end - start, 3)
        for name, start, end in zip(phases, marks[:-1], marks[1:], strict=True)
    }
    print(json.dumps({"peer": "gptqmodel", "seconds": seconds, **vars(args)}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()

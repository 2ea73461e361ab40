"""Quantize a model with AutoRound and save it; runs inside its own environment.

    autoround_run.py MODEL TOKENS.safetensors OUT [--iterations N]

Prints one JSON line with the seconds of each phase.

Settings: symmetric, saved in the format "auto_round" (packed like GPTQ). The number of
iterations, the learning rate (1 / iterations) and the batch of 8 are AutoRound's own defaults; the
batch is smaller only where there are fewer sequences. AutoRound has no damping and no order.
"""

import argparse
import json
import os
import sys
import time

THREADS = os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

started = time.perf_counter()
import torch  # noqa: E402
from auto_round import AutoRound  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

BATCH = 8  # AutoRound's default


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("tokens", help='safetensors file with int "tokens" (sequences, length)')
    parser.add_argument("out")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--iterations", type=int, help="instead of AutoRound's default")
    args = parser.parse_args()
    torch.set_num_threads(int(THREADS))
    marks = [started, time.perf_counter()]

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    marks.append(time.perf_counter())

    tokens = load_file(args.tokens)["tokens"].long()
    batch = min(BATCH, len(tokens))
    chosen = {} if args.iterations is None else {"iters": args.iterations}
    rounding = AutoRound(
        model,
        tokenizer=tokenizer,
        bits=args.bits,
        group_size=args.group_size,
        sym=True,
        dataset=list(tokens.split(batch)),
        nsamples=len(tokens),
        seqlen=tokens.shape[1],
        batch_size=batch,
        device_map="cpu",
        **chosen,
    )
    rounding.quantize()
    marks.append(time.perf_counter())

    rounding.save_quantized(args.out, format="auto_round")
    tokenizer.save_pretrained(args.out)
    marks.append(time.perf_counter())

    phases = ["import", "load", "quantize", "save"]
    seconds = {
        name: round(end - start, 3)
        for name, start, end in zip(phases, marks[:-1], marks[1:], strict=True)
    }
    print(json.dumps({"peer": "autoround", "seconds": seconds, **vars(args)}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Products by compressed weights on a GPU: how much faster than bfloat16?

    .venv/bin/python bench/gpu.py [--json FILE] [--rounds 20]     on a machine with a GPU
    .venv/bin/python bench/gpu.py --tiny                          on any CPU: that it runs, no times

First every kernel is compared with the float64 product of the decoded weight; one that differs is
not timed, and the exit status is 1. Then the linear layers of one block of Qwen3-8B, copied until
no cache holds them, are multiplied by activations of several batches, the kernels in turns, each
pass in a CUDA graph:

    us a block   microseconds of the block's seven products: the median of the rounds
    / bf16       times as fast as torch's bf16 product, within rounds (least .. largest)
    GB/s         the bytes of weights that are read for that

and whole models of random weights decode one token after another (head in bf16, attention over a
cache of 64 tokens).
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if "--tiny" in sys.argv:
    # before anything imports it: Triton's kernels run in its interpreter
    os.environ["TRITON_INTERPRET"] = "1"
    sys.path.insert(0, str(ROOT))

import gpu_rows  # noqa: E402
import torch  # noqa: E402
from gpu_model import Decoder  # noqa: E402
from gpu_rows import Kernel, Timed  # noqa: E402
from records import MODELS, Kind, Model  # noqa: E402

from nearplane.codes import resident  # noqa: E402

KINDS = [
    *(Kind("hptq", bits) for bits in (3.1, 2.1)),
    Kind("eclq", 3.1),
    *(Kind("ssqr", bits, share) for bits in (2, 3, 4) for share in (0.0, 0.01)),
]
MODEL_KINDS = [None, Kind("hptq", 3.1), Kind("eclq", 3.1), Kind("ssqr", 3, 0.01)]
BATCHES = [1, 4, 8, 16, 32, 128]
TINY = Model("tiny", hidden=128, feed_forward=192, heads=4, kv_heads=2)
QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}
TINY_QWEN3 = QWEN3 | {
    "hidden_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 192,
    "vocab_size": 64,
}


def kernels(device: torch.device) -> list[Kernel]:
    kinds = KINDS if device.type == "cuda" else KINDS[::4]
    ours = [gpu_rows.cuda(kind) for kind in kinds]
    ours += [gpu_rows.triton(kind) for kind in kinds if kind.method == "ssqr"]
    return [gpu_rows.bf16(), *ours, *gpu_rows.torchao()]


def checked(
    model: Model, batches: list[int], device: torch.device
) -> tuple[list[Kernel], list[str]]:
    """Return the kernels that are right, and what is wrong with the others."""
    right, red = [], []
    for kernel in kernels(device):
        found = [
            text
            for shape in sorted(set(model.layers))
            for batch in batches
            if (text := gpu_rows.wrong(kernel, shape, batch, device))
        ]
        red += found
        right += [] if found else [kernel]
    return right, red


def products(
    some: list[Kernel], model: Model, batch: int, count: int, device: torch.device
) -> list[dict[str, Any]]:
    """Return a row for each kernel; the first is what others are compared with."""
    timed = [Timed(kernel, model, batch, device) for kernel in some]
    seconds = gpu_rows.rounds(timed, count)
    found = []
    for one, own in zip(timed, seconds, strict=True):
        of_block = statistics.median(own) * model.weights / one.weights
        middle, least, largest = gpu_rows.ratios(own, _per_weight(seconds[0], timed[0], one))
        found.append(
            {
                "kernel": one.kernel.name,
                "batch": batch,
                "bits": one.bits,
                "us_a_block": 1e6 * of_block,
                "times_bf16": middle,
                "least": least,
                "largest": largest,
                "gbytes_per_s": one.bits / 8 * model.weights / of_block / 1e9,
            }
        )
    return found


def _per_weight(seconds: list[float], of: Timed, to: Timed) -> list[float]:
    """Return another kernel's seconds, for as many weights as this one's pass has."""
    return [each * to.weights / of.weights for each in seconds]


def tokens(config: dict, device: str, count: int) -> list[dict[str, Any]]:
    """Return the time of an output token of whole models, the first in bf16."""
    found: list[dict[str, Any]] = []
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for kind in MODEL_KINDS if device == "cuda" else MODEL_KINDS[:2]:
        decoder = Decoder(config, kind, device)
        seconds = decoder.seconds(count, wait)
        name = "torch bf16" if kind is None else kind.label
        first = found[0]["ms_a_token"] if found else 1e3 * seconds
        row = {"model": name, "ms_a_token": 1e3 * seconds, "how": decoder.how}
        found.append(row | {"times_bf16": first / (1e3 * seconds)})
        del decoder
    return found


def print_table(rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    print("| " + " | ".join(name.replace("_", " ") for name in names) + " |")
    print("|---" * len(names) + "|")
    for row in rows:
        cells = [f"{row[n]:.2f}" if isinstance(row[n], float) else str(row[n]) for n in names]
        print("| " + " | ".join(cells) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write all rows there")
    parser.add_argument("--rounds", type=int, default=20, help="passes of each kernel (20)")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, interpreted on a CPU")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        print("there is no GPU that torch sees; --tiny runs everything on a CPU", file=sys.stderr)
        return 2
    if options.tiny:
        from tests.kernels.gpu.host import PLAYED, Host
        from tests.kernels.gpu.interpreted import correct

        correct()

        gpu_rows.cuda_linear.MACHINES["cpu"] = Host()
        resident.lay_out.versions = PLAYED
    device = torch.device("cpu" if options.tiny else "cuda")
    name = "an interpreter" if options.tiny else torch.cuda.get_device_name()
    print(f"on {name}, torch {torch.__version__}\n")
    model = TINY if options.tiny else MODELS["qwen3-8b"]
    batches = [1] if options.tiny else BATCHES
    some, red = checked(model, batches, device)
    for text in red:
        print(f"WRONG, not timed: {text}")
    count = 1 if options.tiny else options.rounds
    rows = [row for batch in batches for row in products(some, model, batch, count, device)]
    print_table(rows)
    print()
    config = TINY_QWEN3 if options.tiny else QWEN3
    models = tokens(config, device.type, 2 if options.tiny else 50)
    print_table(models)
    if options.json:
        every = {"device": name, "products": rows, "models": models, "wrong": red}
        options.json.write_text(json.dumps(every, indent=1) + "\n")
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())

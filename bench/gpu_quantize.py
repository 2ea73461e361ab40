"""Quantizing on an accelerator: is it right, how long does each part take, what would a run take?

    .venv/bin/python bench/gpu_quantize.py [--device cuda] [--json FILE]
    .venv/bin/python bench/gpu_quantize.py --tiny            that it runs, in seconds

First a small matrix is rounded there as on the CPU, and a tiny Llama is quantized whole on both:
integers of layers may differ where a value is half-way between two. Nothing is timed if they
differ by more. Then the parts of one block of Llama-3-8B's shape (random weights and inputs) are
timed, the shortest time of those that fit in a moment, waiting for the device:

    forward     the block on a batch of 2048 tokens
    Hessians    x xᵀ of its four inputs, for as many tokens
    factor      Cholesky factors in float64 of its two widths
    HPTQ, ECLQ  a whole layer of 4096 x 4096 and of 14336 x 4096, as the method is called

and what a run of 128 x 2048 tokens on models of 8B and 70B would take from these, layer by layer
(in proportion to rows · columns · (columns + rows)); coding is in it, copies of
weights to the device are not. bench/speed.py times llm-compressor and GPTQModel on whole models.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

import nearplane as npl
from nearplane.lattice import basis
from nearplane.plan.throughput import seconds_of
from nearplane.precision import exact_products
from nearplane.types import NearplaneError
from nearplane.walk.device import chosen_device
from nearplane.walk.hessian import HessianSum

TOKENS, RUN_TOKENS = 2048, 128 * 2048
MOST_APART = 0.02  # of a layer's loss
SHAPES = {"8b": (4096, 14336, 32, 8, 32), "70b": (8192, 28672, 64, 8, 80)}
TINY = (64, 128, 4, 2, 2)


@dataclass(frozen=True)
class Timed:
    """The shortest time of a part, in seconds."""

    part: str
    seconds: float


def config_of(shape: tuple[int, ...], layers: int = 1) -> LlamaConfig:
    hidden, inner, heads, kv_heads, _ = shape
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        num_hidden_layers=layers,
        vocab_size=320,
    )


def check(device: torch.device) -> str:
    """Return how the weights of a tiny model, quantized on the device, differ from the CPU's.

    Raises SystemExit if they differ by more than ties explain.
    """
    torch.manual_seed(0)
    tokens = torch.randint(3, 320, (8, 64))
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config_of(TINY, 2)).save_pretrained(f"{folder}/model")
        reports = []
        for number, name in enumerate(("cpu", str(device))):
            options: dict[str, Any] = {"arithmetic": "float32", "languages": False, "device": name}
            method, out = npl.GPTQ(bits=4, group_size=32), f"{folder}/{number}"
            reports.append(
                npl.quantize(f"{folder}/model", out, method, tokens, **options)["layers"]
            )
    apart = [
        abs(a["loss"] - b["loss"]) / a["loss"] for a, b in zip(*reports, strict=True) if a["loss"]
    ]
    if max(apart) > MOST_APART:
        raise SystemExit(f"losses of a tiny model differ by {max(apart):.1%}: not timed")
    return f"losses of a tiny model on {device} are within {max(apart):.1e} of the CPU's"


def inputs_of(columns: int, tokens: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return random inputs with a few strong common factors, as layers have."""
    draws = torch.Generator().manual_seed(columns)
    common = torch.randn(tokens, 16, generator=draws) @ torch.randn(16, columns, generator=draws)
    return (common / 4 + torch.randn(tokens, columns, generator=draws)).to(device, dtype)


@torch.no_grad()
def parts(shape: tuple[int, ...], device: torch.device, tokens: int) -> list[Timed]:
    """Time the parts of one block."""
    hidden, inner, *_ = shape
    config = config_of(shape)
    config._attn_implementation = "sdpa"
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    block = LlamaDecoderLayer(config, 0).to(device, dtype)
    x = inputs_of(hidden, tokens, device, dtype)[None]
    places = torch.arange(tokens, device=device)[None]
    turns = LlamaRotaryEmbedding(config).to(device)(x, places)
    found = []

    def timed(part: str, work: Callable[[], Any]) -> None:
        found.append(Timed(part, seconds_of(work, device)))

    timed("forward", lambda: block(x, position_embeddings=turns, position_ids=places))
    sums = [(HessianSum(n, device), inputs_of(n, tokens, device, dtype)) for n in (hidden, inner)]
    timed("Hessians", lambda: [total.add(given) for total, given in (sums[0],) * 3 + (sums[1],)])
    hessians = [total.mean() for total, _ in sums]
    timed("factor", lambda: [basis(h, "activation", 0.01) for h in hessians])
    for rows in (hidden, inner):
        weight = 0.02 * torch.randn(rows, hidden).to(device)
        for method in (npl.HPTQ(bpw=3.1), npl.ECLQ(bpw=3.1)):
            call = method, weight, hessians[0]
            timed(f"{method.name} {rows} x {hidden}", lambda call=call: call[0](*call[1:]))
    return found


def whole(found: list[Timed], shape: tuple[int, ...], model: tuple[int, ...]) -> dict[str, float]:
    """Return about how long whole runs take, in seconds, from the parts of one block."""
    seconds = {each.part: each.seconds for each in found}
    layers, ratio = model[4], model[0] / shape[0]
    batches = RUN_TOKENS / TOKENS
    fixed = layers * (
        2 * batches * (seconds["forward"] + seconds["Hessians"]) * ratio**2
        + seconds["factor"] * ratio**3
    )
    result = {}
    for name in ("hptq", "eclq"):
        square = seconds[f"{name} {shape[0]} x {shape[0]}"]
        wide = seconds[f"{name} {shape[1]} x {shape[0]}"]
        # q, k, v, o; gate and up; down, whose columns are as many more as it has fewer rows
        layer = 2.5 * square + 2 * wide + wide * shape[1] / shape[0]
        streams = 1.0 if name == "hptq" else 2.0
        result[name] = fixed * streams + layers * layer * ratio**3
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    arguments = tiny.parse(parser)
    try:
        device = chosen_device(arguments.device)
    except NearplaneError as error:
        raise SystemExit(str(error)) from error
    shape = TINY if arguments.tiny else SHAPES["8b"]
    tokens = 64 if arguments.tiny else TOKENS
    said = check(device)
    print(said)
    with exact_products(device):
        found = parts(shape, device, tokens)
    for each in found:
        print(f"{each.part:24} {1e3 * each.seconds:10.2f} ms")
    runs = {}
    for name, model in ({"tiny": TINY} if arguments.tiny else SHAPES).items():
        runs[name] = whole(found, shape, model)
        times = ", ".join(f"{method} {s / 60:.1f} min" for method, s in runs[name].items())
        print(f"a run of 128 x 2048 tokens, {name}: {times} (from the parts of one block)")
    if arguments.json:
        result = {"device": str(device), "check": said, "parts": [asdict(e) for e in found]}
        arguments.json.write_text(json.dumps(result | {"runs": runs}, indent=1))


if __name__ == "__main__":
    main()

"""Quantizing on an accelerator: is it right, how long does each part take, what would a run take?

    .venv/bin/python bench/gpu_quantize.py [--device cuda] [--sheet h100] [--json FILE]
    .venv/bin/python bench/gpu_quantize.py --tiny            that it runs, in seconds

First a small matrix is rounded there as on the CPU, and a tiny Llama is quantized whole on both:
integers of layers may differ where a value is half-way between two. Nothing is timed if they
differ by more. Then the parts of one block of Llama-3-8B's shape (random weights and inputs) are
timed, the shortest time of those that fit in a moment, waiting for the device:

    forward     the block on a batch of 2048 tokens
    Hessians    x xᵀ of its four inputs, for as many tokens
    factors     Cholesky factors in float64 of its four inputs
    HPTQ, ECLQ  a whole layer of 4096 x 4096 and of 14336 x 4096, as a run calls the method: ECLQ
                with an output Hessian

and what a run of 128 x 2048 tokens on models of 8B and 70B would take from these, layer by layer
(in proportion to rows · columns · (columns + rows)); coding is in it, copies of weights to the
device are not. A part is begun while fewer than MOST_S seconds have passed; what is left out then
is said.

Beside each time is that of `nearplane plan --device` for the same work, what bounds it there, and
which share of that peak was reached: for a device that plan knows by the name torch gives it, or by
`--sheet`. If llm-compressor is installed, its GPTQModifier quantizes a block of the same shape on
the same number of tokens; that part was not run yet. bench/speed.py times it on whole models.
"""

import argparse
import importlib
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gpu_model_times
import tiny
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

import nearplane as npl
from nearplane.lattice import basis
from nearplane.methods import Target
from nearplane.plan.devices import DEVICES, name_of_device
from nearplane.plan.throughput import Clock
from nearplane.plan.trial_matrix import output_hessians
from nearplane.types import NearplaneError
from nearplane.walk.device import chosen_device
from nearplane.walk.hessian import HessianSum
from nearplane.walk.precision import Precision

TOKENS, RUN_TOKENS = 2048, 128 * 2048
MOST_APART = 0.02  # of a layer's loss
SHAPES = {"8b": (4096, 14336, 32, 8, 32), "70b": (8192, 28672, 64, 8, 80)}
TINY = (64, 128, 4, 2, 2)
MOST_S = 300.0  # after which no part is begun; one takes less than a minute on any GPU of DEVICES
PART_S, ENOUGH_S = 20.0, 0.5  # of one part: of its calls, and of those that are enough
PEER_SEQUENCES = 8


@dataclass(frozen=True)
class Timed:
    """The shortest time of a part, in seconds."""

    part: str
    seconds: float


@dataclass
class Stopwatch:
    """Times parts of a block until MOST_S have passed since it was made."""

    device: torch.device
    found: list[Timed] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def time(self, part: str, work: Callable[[], Any]) -> None:
        """Time a part, whose first call also compiles kernels; once only if it takes long."""
        started = time.perf_counter()
        if started - self.began > MOST_S:
            self.left_out.append(part)
            return
        times = []
        while not times or time.perf_counter() - started < ENOUGH_S or len(times) == 1:
            clock = Clock.started(self.device)
            work()
            times.append(clock.seconds)
            if time.perf_counter() - started > PART_S:
                break
        self.found.append(Timed(part, min(times)))


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
def parts(shape: tuple[int, ...], device: torch.device, tokens: int) -> Stopwatch:
    """Time the parts of one block."""
    hidden, inner, *_ = shape
    config = config_of(shape)
    config._attn_implementation = "sdpa"
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    block = LlamaDecoderLayer(config, 0).to(device, dtype)
    x = inputs_of(hidden, tokens, device, dtype)[None]
    places = torch.arange(tokens, device=device)[None]
    turns = LlamaRotaryEmbedding(config).to(device)(x, places)
    watch = Stopwatch(device)
    watch.time("forward", lambda: block(x, position_embeddings=turns, position_ids=places))
    sums = [(HessianSum(n, device), inputs_of(n, tokens, device, dtype)) for n in (hidden, inner)]
    four = (sums[0],) * 3 + (sums[1],)
    watch.time("Hessians", lambda: [total.add(given) for total, given in four])
    hessians = [total.mean() for total, _ in sums]
    each = (hessians[0],) * 3 + (hessians[1],)
    watch.time("factors", lambda: [basis(hessian, "activation", 0.01) for hessian in each])
    for rows in (hidden, inner):
        weight = 0.02 * torch.randn(rows, hidden).to(device)
        for method in (npl.HPTQ(bpw=3.1), npl.ECLQ(bpw=3.1)):
            rounded = rounding(method, weight, hessians[0])
            watch.time(f"{method.name} {rows} x {hidden}", rounded)
    return watch


def rounding(method: Any, weight: Tensor, hessian: Tensor) -> Callable[[], Any]:
    """Return the function that quantizes a layer as a run does, on the basis of its inputs."""
    outputs = output_hessians(0, len(weight)) if method.weighs_outputs else ()
    there = tuple(block.to(weight.device) for block in outputs)
    layer_basis = method.basis(hessian)
    if not there:
        return lambda: method(weight, layer_basis)
    return lambda: method.quantize_towards(
        weight, layer_basis, Target(weight, output_hessian=there)
    )


def whole(found: list[Timed], shape: tuple[int, ...], model: tuple[int, ...]) -> dict[str, float]:
    """Return about how long whole runs take, in seconds, from the parts of one block."""
    seconds = {each.part: each.seconds for each in found}
    if len(seconds) < 7:
        return {}
    layers, ratio = model[4], model[0] / shape[0]
    batches = RUN_TOKENS / TOKENS
    fixed = layers * (
        2 * batches * (seconds["forward"] + seconds["Hessians"]) * ratio**2
        + seconds["factors"] * ratio**3
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


def peer(shape: tuple[int, ...], device: torch.device, tokens: int) -> str:
    """Return in a sentence how long llm-compressor's GPTQ takes for a block of this shape."""
    if importlib.util.find_spec("llmcompressor") is None:
        return "llm-compressor is not installed here: not timed"
    library = importlib.import_module("llmcompressor")
    modifiers = importlib.import_module("llmcompressor.modifiers.gptq")
    data = importlib.import_module("datasets").Dataset
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model: Any = LlamaForCausalLM(config_of(shape))
    model.to(device, dtype)
    ids = torch.randint(3, 320, (PEER_SEQUENCES, tokens)).tolist()
    samples = {"input_ids": ids, "attention_mask": [[1] * tokens] * PEER_SEQUENCES}
    modifier = modifiers.GPTQModifier(targets=["Linear"], scheme="W4A16", ignore=["lm_head"])
    started = Clock.started(device)
    library.oneshot(
        model=model,
        dataset=data.from_dict(samples),
        recipe=modifier,
        max_seq_length=tokens,
        num_calibration_samples=PEER_SEQUENCES,
    )
    size = f"{PEER_SEQUENCES} x {tokens} tokens"
    return f"llm-compressor's GPTQModifier, one block, {size}: {started.seconds:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sheet", choices=list(DEVICES), help="the data sheet to compare with")
    parser.add_argument("--json", type=Path)
    arguments = tiny.parse(parser, sheet="h100")
    try:
        device = chosen_device(arguments.device)
    except NearplaneError as error:
        raise SystemExit(str(error)) from error
    shape = TINY if arguments.tiny else SHAPES["8b"]
    tokens = 64 if arguments.tiny else TOKENS
    said = check(device)
    print(said)
    precision = Precision(device, print)
    with precision.kept():
        precision.choose(shape[1])
        watch = parts(shape, device, tokens)
    found = watch.found
    title = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    sheet = arguments.sheet or name_of_device(title)
    for line in gpu_model_times.compared(found, shape, tokens, title, sheet):
        print(line)
    for part in watch.left_out:
        print(f"{part}: not timed, {MOST_S:.0f} s had passed")
    runs = {}
    for name, model in ({"tiny": TINY} if arguments.tiny else SHAPES).items():
        runs[name] = whole(found, shape, model)
        times = ", ".join(f"{method} {s / 60:.1f} min" for method, s in runs[name].items())
        if times:
            print(f"a run of 128 x 2048 tokens, {name}: {times} (from the parts of one block)")
    if arguments.tiny:
        print(tiny.LEFT_OUT)
    elif time.perf_counter() - watch.began < MOST_S:
        print(peer(shape, device, tokens))
    if arguments.json:
        result = {"device": title, "check": said, "parts": [asdict(e) for e in found]}
        arguments.json.write_text(json.dumps(result | {"runs": runs}, indent=1))


if __name__ == "__main__":
    main()

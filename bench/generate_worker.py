"""A model of random weights that generates, in a process of its own: serves bench/generate.py."""

import ctypes
import gc
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from peers.pipe import serve
from random_model import HEAD, random_model
from records import Kind
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig

from nearplane.export.linear import CompressedLinear
from nearplane.export.one_token import attach
from nearplane.model.compute_dtype import AUTO, arithmetic_for

# generates once before memory is measured: transformers imports much when it does
TINY = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
TINY |= {"intermediate_size": 64, "vocab_size": 64}
PASSES = 5


class State:
    """The one model of this process."""

    model: Any = None


class Clock:
    """A streamer that keeps when it was given the prompt, and then every token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def build(config: dict, kind: str, bits: float, outliers: float, head: bool) -> dict[str, float]:
    """Make the model; return its resident bits and the growth of this process's memory.

    - `config`: of transformers, with `model_type`.
    - `kind`: "bf16", or the method of the layers of the blocks; `head`: and of the output layer.
    """
    compress = None if kind == "bf16" else Kind(kind, bits, outliers)
    State.model = random_model(TINY, None, False)
    generate(4, 4, 1)
    before = _memory()
    State.model = model = random_model(config, compress, head)
    if compress:
        # as `nearplane.load` makes it
        model.to(arithmetic_for(torch.bfloat16, AUTO, None))
        attach(model)
    generate(4, 4, 1)
    layers = [layer for layer in model.modules() if isinstance(layer, CompressedLinear)]
    stored = [(layer.resident_bpw, layer.in_features * layer.out_features) for layer in layers]
    weights = sum(count for _, count in stored)
    mean = sum(bits * count for bits, count in stored) / weights if stored else 16.0
    return {"resident_bits": mean, "memory": _memory() - before}


@torch.inference_mode()
def generate(prompt: int, tokens: int, threads: int) -> list[float]:
    """Return the seconds of the prompt, and of every token after the first, by transformers."""
    torch.set_num_threads(threads)
    clock, given = Clock(), _prompt(prompt)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0
    )
    State.model.generate(
        given, attention_mask=torch.ones_like(given), generation_config=settings, streamer=clock
    )
    return [end - start for start, end in zip(clock.times[:-1], clock.times[1:], strict=True)]


@torch.inference_mode()
def bare(prompt: int, tokens: int, threads: int) -> list[float]:
    """Return the same, of nothing but the model's forward and the choice of the largest."""
    torch.set_num_threads(threads)
    seconds, given, cache = [], _prompt(prompt), DynamicCache(config=State.model.config)
    for _ in range(tokens):
        started = time.perf_counter()
        said = State.model(input_ids=given, past_key_values=cache, logits_to_keep=1)
        given = said.logits[:, -1:].argmax(-1)
        seconds.append(time.perf_counter() - started)
    return seconds


@torch.inference_mode()
def parts(prompt: int, tokens: int, threads: int) -> dict[str, float]:
    """Return where a token's seconds go: the layers' products, the output layer, all the rest.

    Products are timed one after the other, without anything between; the rest is what a token of
    `bare` takes beyond them.
    """
    whole = statistics.median(bare(prompt, tokens, threads)[1:])
    layers = [(n, m) for n, m in State.model.named_modules() if _is_linear(m)]
    given = {m.in_features: torch.randn(1, m.in_features, dtype=_dtype()) for _, m in layers}
    rounds: list[Counter[str]] = []
    for _ in range(PASSES):
        clock: Counter[str] = Counter()
        for name, layer in layers:
            started = time.perf_counter()
            layer(given[layer.in_features])
            clock["head" if name == HEAD else "products"] += time.perf_counter() - started
        rounds.append(clock)
    found = {
        part: statistics.median(each[part] for each in rounds) for part in ("products", "head")
    }
    return found | {"rest": whole - sum(found.values())}


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, CompressedLinear))


def _dtype() -> torch.dtype:
    return next(State.model.parameters()).dtype


def _prompt(length: int) -> Tensor:
    return torch.arange(1, length + 1)[None]


def _memory() -> int:
    """Return the bytes of this process in memory, without what is freed."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    torch.manual_seed(0)
    serve({function.__name__: function for function in (build, generate, bare, parts)})

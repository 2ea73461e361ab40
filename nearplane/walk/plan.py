"""What a run would take, said before a weight is loaded."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil, log2
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nearplane import codes
from nearplane.experts import split_experts_
from nearplane.methods import Method
from nearplane.types import NearplaneError, first_line
from nearplane.walk.blocks import Layer, find_blocks, kept_router, layers_of, routers, unquantizable
from nearplane.walk.calibration import DEFAULT_LENGTH
from nearplane.walk.flow import flow_of
from nearplane.walk.head import head_of, untie
from nearplane.walk.probe import LENGTH as PROBED_LENGTH
from nearplane.walk.probe import SEQUENCES as PROBED_SEQUENCES
from nearplane.walk.probe import kind_of
from nearplane.walk.source import location, open_config
from nearplane.walk.walk import BATCH_TOKENS, Rules
from nearplane.walk.weight_files import empty_model

BASE_BYTES = 1e9  # Python, torch, transformers, and freed blocks that the allocator keeps
STEP_BITS = 16
OUTLIER_BITS = 16
FILE_BYTES = 1000  # the rest of a safetensors directory
RECORD_BYTES = 150  # header, check sum and directory entry
FORWARDS = 1.1  # of all layers: a paused run does every product once, and a few tokens are observed
HESSIAN_SHARE = 5 / 8  # of the full product, see hessian.py
SOLVE_FLOPS = 8  # times rows · columns²: several roundings in float32, one measure in float64
SAMPLE = 384  # rows and columns of the matrix that the method's own speed is measured on
MEASURE_S = 0.2


@dataclass(frozen=True)
class Survey:
    """A model without weights, and which of its layers a method would quantize.

    - `stages`: layers that share their inputs, as far as a run without numbers shows it.
    - `shares`: the share of the tokens that comes to one expert, by its layers' names.
    """

    name: str
    model: nn.Module
    dtype: torch.dtype
    method: Method
    layers: list[Layer]
    stages: list[list[Layer]]
    left_out: list[str] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)

    def share(self, layer: Layer) -> float:
        """Return the share of all tokens that a layer is given."""
        return self.shares.get(layer.name, 1.0)

    @property
    def units(self) -> int:
        """How many layers are probed apart; those of one kind of all experts are one."""
        return len({kind_of(la) if la.name in self.shares else la.name for la in self.layers})

    @property
    def active(self) -> float:
        """How many weights a token is multiplied by, on average."""
        return sum(layer.weight().numel() * self.share(layer) for layer in self.layers)

    @property
    def quantized(self) -> int:
        """How many weights are quantized."""
        return sum(rows * columns for rows, columns in map(shape_of, self.layers))

    @property
    def kept(self) -> int:
        """How many numbers stay as they are; tied ones are counted once."""
        return sum(p.numel() for p in self.model.parameters()) - self.quantized

    @property
    def stored_bytes(self) -> int:
        """About what the checkpoint's tensors take."""
        records = sum(record_bytes(self.method, *shape_of(layer)) for layer in self.layers)
        return round(records + self.kept * self.dtype.itemsize)

    @property
    def model_bytes(self) -> int:
        return (self.quantized + self.kept) * self.dtype.itemsize

    def sentence(self) -> str:
        """Return the sizes in one line."""
        return (
            f"{self.name}: {len(self.layers)} layers, {self.quantized:,} weights to quantize, "
            f"{self.kept:,} kept; {self.model_bytes / 1e6:,.1f} MB will be about "
            f"{self.stored_bytes / 1e6:,.1f}"
        )


@dataclass(frozen=True)
class Rates:
    """What this machine does in a second, measured."""

    float32_flops: float
    model_flops: float
    coded_weights: float


@dataclass(frozen=True)
class Estimate:
    """What a run would take."""

    survey: Survey
    sequences: int
    length: int
    rates: Rates

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    @property
    def peak_bytes(self) -> int:
        """The model, what paused runs of a block hold, the largest layer's working set, Python."""
        width = max(la.shape[1] * self.survey.share(la) for la in self.survey.layers)
        hidden = getattr(text_config(self.survey.model), "hidden_size", width)
        # residual, normed and mixed states of every token, and two as wide as the widest layer
        states = self.tokens * (4 * hidden + 2 * width) * self.survey.dtype.itemsize
        if self.survey.shares:
            states += self.tokens * hidden * 4  # experts add up in float32
        if self.survey.method.compensates:
            states *= 2  # the original model's runs wait beside
        working = max(working_bytes(*shape_of(layer)) for layer in self.survey.layers)
        batch = 4 * min(BATCH_TOKENS, self.tokens) * width * 4
        return round(self.survey.model_bytes + states + working + batch + BASE_BYTES)

    @property
    def seconds(self) -> float:
        shapes = list(map(shape_of, self.survey.layers))
        method, tokens = self.survey.method, self.tokens
        streams = 2 if method.compensates else 1
        forward = FORWARDS * 2 * streams * tokens * self.survey.active / self.rates.model_flops
        if method.allocates:
            # half of the blocks, on average, follow the one that is disturbed
            probed = self.survey.units * PROBED_SEQUENCES * PROBED_LENGTH
            forward += probed * self.survey.active / self.rates.model_flops
        share = HESSIAN_SHARE + (1 if method.compensates else 0)
        firsts = [stage[0] for stage in self.survey.stages]
        hessians = sum(
            share * 2 * tokens * self.survey.share(layer) * layer.shape[1] ** 2 for layer in firsts
        )
        solve = sum(SOLVE_FLOPS * rows * n**2 for rows, n in shapes)
        coded = self.survey.quantized / self.rates.coded_weights
        return forward + (hessians + solve) / self.rates.float32_flops + coded

    def lines(self) -> list[str]:
        """Return the estimate for people, with what it assumes."""
        survey, rates = self.survey, self.rates
        available = available_bytes()
        lines = [
            survey.sentence(),
            f"bits per quantized weight: {bits_of(survey):.3f} ({survey.method})",
            f"disk: {survey.stored_bytes / 1e9:.3f} GB",
            f"peak memory: about {self.peak_bytes / 1e9:.1f} GB "
            f"of {available / 1e9:.1f} GB available",
            f"time: about {duration(self.seconds)} on {torch.get_num_threads()} threads",
            f"assumed: {self.sequences} sequences of {self.length} tokens, "
            f"{len(survey.stages)} Hessians",
            f"measured just now: {rates.float32_flops / 1e9:.0f} GFLOP/s in float32, "
            f"{rates.model_flops / 1e9:.0f} in {str(survey.dtype).removeprefix('torch.')}, "
            f"{rates.coded_weights / 1e6:.2f} million weights/s through {survey.method.name}",
            "expect the right order of magnitude, not more",
        ]
        if self.peak_bytes > available:
            lines.append("warning: that is more memory than this machine has available")
        return lines + survey.left_out


def survey(
    name: str | Path, method: Method, rules: Rules | None = None, trust_remote_code: bool = False
) -> Survey:
    """Return what `method` would quantize of a model, from its configuration alone.

    Raises NearplaneError when the model cannot be opened or a layer cannot meet the target.
    """
    rules = rules or Rules()
    where = location(name, trust_remote_code)
    config = open_config(name, where)
    if getattr(config, "quantization_config", None) and "gguf_file" not in where:
        raise NearplaneError(f"{name} is quantized already: give the original model")
    model = without_weights(name, config, trust_remote_code)
    split_experts_(model)
    blocks_name, blocks = find_blocks(model)
    named = [(f"{blocks_name}.{index}", block) for index, block in enumerate(blocks)]
    strange = [part for prefix, block in named for part in unquantizable(block, prefix)]
    if strange and rules.strict:
        raise NearplaneError(f"these parts cannot be quantized: {', '.join(strange)}")
    found = [layer for prefix, block in named for layer in layers_of(block, prefix)]
    layers = [la for la in found if not any(re.search(skip, la.name) for skip in rules.skip)]
    if rules.lm_head:
        layers.append(head_of(model))
        untie(model, layers[-1])
    if not layers:
        raise NearplaneError("every layer is skipped: nothing to quantize")
    check_target(method, layers)
    left_out = [f"{part} cannot be quantized" for part in strange]
    left_out += [
        kept_router(f"{p}.{name}") for p, block in named for name in routers(block).values()
    ]
    kept = set(found) - set(layers)
    left_out += [f"{layer.name} is skipped as asked" for layer in found if layer in kept]
    dtype = torch.bfloat16 if "gguf_file" in where else stored_dtype(config)
    flow = flow_of(model, layers)
    return Survey(
        str(name), model, dtype, method, layers, flow.stages, left_out, shares=flow.shares
    )


def at_size(found: Survey, size: int) -> Survey:
    """Return the survey with its method at the rate whose weight files take `size` bytes.

    What stays as it is keeps its bytes; a directory entry of every tensor is counted.

    Raises NearplaneError when the method has no rate, or when no rate it has gives that size.
    """
    if not hasattr(found.method, "bpw"):
        raise NearplaneError(f"{found.method.name} has no rate that a size could set")
    entries = codes.ENTRY_BYTES * (len(found.model.state_dict()) - len(found.layers))
    kept = found.kept * found.dtype.itemsize + entries + FILE_BYTES
    bpw = 8 * (size - kept) / found.quantized
    if bpw <= 0:
        raise NearplaneError(
            f"{size / 1e6:.1f} MB cannot be met: what is not quantized takes {kept / 1e6:.1f} MB"
        )
    try:
        method = found.method.at(bpw)
        check_target(method, found.layers)
    except NearplaneError as error:
        raise NearplaneError(f"{size / 1e6:.1f} MB mean {bpw:.3f} bits per weight: {error}") from (
            error
        )
    return replace(found, method=method)


def check_target(method: Method, layers: list[Layer]) -> None:
    """Raise NearplaneError naming the first layer that cannot meet the method's target."""
    for layer in layers:
        try:
            method.check(*shape_of(layer))
        except NearplaneError as error:
            raise NearplaneError(f"{layer.name}: {error}") from error


def without_weights(name: str | Path, config: Any, trust_remote_code: bool) -> nn.Module:
    """Return the model on the meta device, where nothing takes memory."""
    try:
        return empty_model(config, trust_remote_code)
    # config.json may hold anything, and every model has errors of its own for that
    except Exception as error:
        raise NearplaneError(f"the model {name} cannot be built: {first_line(error)}") from error


def estimate(found: Survey, sequences: int = 128, length: int | None = None) -> Estimate:
    """Return what a run would take; measures this machine for about a second."""
    limit = getattr(text_config(found.model), "max_position_embeddings", None) or DEFAULT_LENGTH
    return Estimate(found, sequences, length or min(DEFAULT_LENGTH, limit), measure(found))


def measure(found: Survey) -> Rates:
    """Return what this machine does in a second."""
    side = 1024
    square = torch.randn(side, side)
    narrow = square.to(found.dtype)
    weight = torch.randn(SAMPLE, SAMPLE)
    basis = found.method.basis(torch.eye(SAMPLE))
    flops = 2 * side**3
    return Rates(
        float32_flops=flops / seconds_of(lambda: square @ square),
        model_flops=flops / seconds_of(lambda: nn.functional.linear(narrow, narrow)),
        coded_weights=weight.numel() / seconds_of(lambda: found.method(weight, basis)),
    )


def seconds_of(work: Callable[[], Any]) -> float:
    """Return the shortest time that `work` takes, of those that fit in MEASURE_S."""
    work()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < MEASURE_S:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def record_bytes(method: Any, rows: int, columns: int) -> float:
    """Return about the bytes that a method stores for a matrix, from its hyper-parameters."""
    if hasattr(method, "bpw"):
        return rows * columns * method.bpw / 8
    groups = ceil(columns / method.group_size)
    outlier_bits = OUTLIER_BITS + ceil(log2(max(columns, 2)))
    bits = method.bits + getattr(method, "outliers", 0) * outlier_bits
    return rows * (columns * bits + groups * STEP_BITS) / 8 + RECORD_BYTES


def bits_of(found: Survey) -> float:
    """Return about the bits per quantized weight of everything stored for it."""
    stored = sum(record_bytes(found.method, *shape_of(layer)) for layer in found.layers)
    return 8 * stored / found.quantized


def working_bytes(rows: int, columns: int) -> int:
    """Return about what quantizing one layer takes.

    The Hessian in float32 and four float64 copies of it; six float32 copies of the weight.
    """
    return (4 + 4 * 8) * columns**2 + 6 * 4 * rows * columns


def shape_of(layer: Layer) -> tuple[int, int]:
    return layer.shape


def text_config(model: Any) -> Any:
    """Return the configuration of the language model, which some families keep inside another."""
    return model.config.get_text_config()


def stored_dtype(config: Any) -> torch.dtype:
    """Return the type that the model will be loaded in."""
    dtype = getattr(config.get_text_config(), "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def available_bytes() -> int:
    """Return the memory that a program can have now."""
    try:
        text = Path("/proc/meminfo").read_text()
        return int(re.search(r"MemAvailable:\s+(\d+) kB", text)[1]) * 1024  # pyright: ignore
    except (OSError, TypeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def duration(seconds: float) -> str:
    """Return a time that people can read."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

"""What a model has to quantize, seen without loading a weight."""

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil, log2
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nearplane import codes
from nearplane.methods import Method
from nearplane.model.blocks import (
    Layer,
    find_blocks,
    kept_router,
    layers_of,
    routers,
    unquantizable,
)
from nearplane.model.compute_dtype import AUTO, arithmetic_for
from nearplane.model.experts import split_experts_
from nearplane.model.meta_run import flow_of
from nearplane.model.open_model import location, open_config, stored_dtype
from nearplane.model.output_head import head_of, untie
from nearplane.model.weight_files import empty_model
from nearplane.types import NearplaneError, first_line
from nearplane.walk.sensitivity import kind_of
from nearplane.walk.walk import Rules

CONFIG = "config.json"
STEP_BITS = 16
OUTLIER_BITS = 16
FILE_BYTES = 1000  # the rest of a safetensors directory
RECORD_BYTES = 150  # header, check sum and directory entry


@dataclass(frozen=True)
class Survey:
    """A model without weights, and which of its layers a method would quantize.

    - `dtype`: that it is stored in; `compute` that its products run in.
    - `stages`: layers that share their inputs, as far as a run without numbers shows it.
    - `shares`: the share of the tokens that comes to one expert, by its layers' names.
    """

    name: str
    model: nn.Module
    dtype: torch.dtype
    compute: torch.dtype
    method: Method
    layers: list[Layer]
    stages: list[list[Layer]]
    left_out: list[str] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)

    def share(self, layer: Layer) -> float:
        """Return the share of all tokens that a layer is given."""
        return self.shares.get(layer.name, 1.0)

    @cached_property
    def units(self) -> int:
        """How many layers are probed apart; those of one kind of all experts are one."""
        return len({kind_of(la) if la.name in self.shares else la.name for la in self.layers})

    @cached_property
    def active(self) -> float:
        """How many weights a token is multiplied by, on average."""
        return sum(layer.weight().numel() * self.share(layer) for layer in self.layers)

    @cached_property
    def widest(self) -> int:
        """The columns of the widest layer."""
        return max(columns for _, columns in map(shape_of, self.layers))

    @cached_property
    def quantized(self) -> int:
        """How many weights are quantized."""
        return sum(rows * columns for rows, columns in map(shape_of, self.layers))

    @cached_property
    def kept(self) -> int:
        """How many numbers stay as they are; tied ones are counted once."""
        return sum(p.numel() for p in self.model.parameters()) - self.quantized

    @cached_property
    def stored_bytes(self) -> int:
        """About what the checkpoint's tensors take."""
        records = sum(record_bytes(self.method, *shape_of(layer)) for layer in self.layers)
        return round(records + self.kept * self.dtype.itemsize)

    @cached_property
    def model_bytes(self) -> int:
        return (self.quantized + self.kept) * self.dtype.itemsize

    def sentence(self) -> str:
        """Return the sizes in one line."""
        return (
            f"{self.name}: {len(self.layers)} layers, {self.quantized:,} weights to quantize, "
            f"{self.kept:,} kept; {self.model_bytes / 1e6:,.1f} MB will be about "
            f"{self.stored_bytes / 1e6:,.1f}"
        )


def survey(
    name: str | Path,
    method: Method,
    rules: Rules | None = None,
    trust_remote_code: bool = False,
    bare: bool = False,
    arithmetic: str = AUTO,
) -> Survey:
    """Return what `method` would quantize of a model, from its configuration alone.

    - `bare`: a directory that holds nothing but a config.json will do.
    - `arithmetic`: "auto", or the name of the type that products run in.

    Raises NearplaneError when the model cannot be opened or a layer cannot meet the target.
    """
    rules = rules or Rules()
    where = place_of(name, trust_remote_code) if bare else location(name, trust_remote_code)
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
    dtype = stored_dtype(config, where)
    compute = arithmetic_for(dtype, arithmetic)
    flow = flow_of(model, layers)
    return Survey(
        str(name), model, dtype, compute, method, layers, flow.stages, left_out, flow.shares
    )


def place_of(name: str | Path, trust_remote_code: bool) -> dict[str, Any]:
    """Return the arguments by which transformers finds a model that may have no weights yet."""
    path = Path(name)
    if path.is_dir() and {file.name for file in path.iterdir()} == {CONFIG}:
        return {"trust_remote_code": trust_remote_code, "pretrained_model_name_or_path": str(path)}
    return location(name, trust_remote_code)


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


def shape_of(layer: Layer) -> tuple[int, int]:
    return layer.shape


def text_config(model: Any) -> Any:
    """Return the configuration of the language model, which some families keep inside another."""
    return model.config.get_text_config()

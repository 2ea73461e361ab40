"""List what a method would quantize of a model, without loading a weight."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nearplane import codes
from nearplane.methods import Method
from nearplane.model.blocks import Layer, find_blocks
from nearplane.model.compute_dtype import AUTO, arithmetic_for
from nearplane.model.experts import split_experts_
from nearplane.model.meta_run import meta_run
from nearplane.model.open_model import EmptyModel, open_without_weights
from nearplane.model.selection import Rules, Selection, select
from nearplane.types import NearplaneError
from nearplane.walk.sensitivity import kind_of
from nearplane.walk.walk import check_layers

FILE_BYTES = 1000  # a safetensors header beside its tensors' entries


@dataclass(frozen=True)
class Survey:
    """A model without weights, and which of its layers a method would quantize.

    - `compute`: the type that products run in.
    - `stages`: layers that share their inputs, found by a run on the meta device.
    - `shares`: name of an expert's layer -> the share of all tokens that is routed to it.
    - `launches`: of kernels in one forward pass on an accelerator; 0 where that is not known.
    """

    empty: EmptyModel
    compute: torch.dtype
    method: Method
    selection: Selection
    stages: list[list[Layer]]
    shares: dict[str, float] = field(default_factory=dict)
    launches: int = 0

    @property
    def name(self) -> str:
        return self.empty.name

    @property
    def model(self) -> nn.Module:
        return self.empty.model

    @property
    def dtype(self) -> torch.dtype:
        """The type that the model is stored in."""
        return self.empty.dtype

    @cached_property
    def layers(self) -> list[Layer]:
        """The layers to quantize."""
        return self.selection.of(self.model)

    @property
    def config(self) -> Any:
        """The configuration of the language model, which some families keep inside another."""
        return self.empty.config.get_text_config()

    def number(self, name: str, default: int) -> int:
        """Return a number of the configuration, the largest where blocks have their own.

        - `default`: what is returned where the family has no number of this name.
        """
        try:
            found = [getattr(self.config, name, None)]
        # transformers has an error of its own for a number that blocks have apiece
        except Exception:
            found = [getattr(each, name, None) for each in self.config.per_layer_config]
        return max((each for each in found if isinstance(each, int)), default=default)

    @cached_property
    def blocks(self) -> nn.ModuleList:
        return find_blocks(self.model)[1]

    def share(self, layer: Layer) -> float:
        """Return the share of all tokens that a layer is given."""
        return self.shares.get(layer.name, 1.0)

    @cached_property
    def units(self) -> int:
        """How many sensitivities are measured: all experts' layers of one kind count as one."""
        return len({kind_of(la) if la.name in self.shares else la.name for la in self.layers})

    @cached_property
    def active(self) -> float:
        """How many quantized weights a token is multiplied by, on average."""
        return sum(layer.weight().numel() * self.share(layer) for layer in self.layers)

    @cached_property
    def widest(self) -> int:
        """The columns of the widest layer."""
        return max(columns for _, columns in (layer.shape for layer in self.layers))

    @cached_property
    def quantized(self) -> int:
        """How many weights are quantized."""
        return sum(rows * columns for rows, columns in (layer.shape for layer in self.layers))

    @cached_property
    def unquantized(self) -> int:
        """How many numbers stay as they are; tied ones are counted once."""
        return sum(p.numel() for p in self.model.parameters()) - self.quantized

    @cached_property
    def stored_bytes(self) -> int:
        """About the bytes of the checkpoint's tensors."""
        return round(self.record_bytes + self.unquantized * self.dtype.itemsize)

    @cached_property
    def record_bytes(self) -> float:
        """About the bytes of all layers' records, as the method predicts."""
        return sum(self.method.stored_bytes(*layer.shape) for layer in self.layers)

    @cached_property
    def model_bytes(self) -> int:
        return (self.quantized + self.unquantized) * self.dtype.itemsize

    def sentence(self) -> str:
        """Return the sizes in one line."""
        return (
            f"{self.name}: {len(self.layers)} layers, {self.quantized:,} weights to quantize, "
            f"{self.unquantized:,} kept; {self.model_bytes / 1e6:,.1f} MB will be about "
            f"{self.stored_bytes / 1e6:,.1f}"
        )


def survey(
    model: str | Path | EmptyModel,
    method: Method,
    rules: Rules | None = None,
    trust_remote_code: bool = False,
    bare: bool = False,
    arithmetic: str = AUTO,
) -> Survey:
    """Return what `method` would quantize of a model, from its configuration alone.

    - `model`: a directory, a hub name, a .gguf file, or what `open_without_weights` returned.
    - `bare`: also accept a directory that holds nothing but a config.json.
    - `arithmetic`: "auto", or the name of the type that products run in.

    Raises NearplaneError when the model cannot be opened or a layer cannot meet the target.
    """
    if not isinstance(model, EmptyModel):
        model = open_without_weights(model, trust_remote_code, bare)
    split_experts_(model.model)
    selection = select(model.model, rules)
    layers = selection.of(model.model)
    check_layers(method, layers)
    run = meta_run(model.model, layers)
    compute = arithmetic_for(model.dtype, arithmetic)
    return Survey(model, compute, method, selection, run.stages, run.shares, run.launches)


def at_size(found: Survey, size: int) -> Survey:
    """Return the survey with its method at the rate whose weight files take `size` bytes.

    Counts the bytes of unquantized tensors, and of every tensor's entry in the files' headers.

    Raises NearplaneError when the method has no rate, or none that gives this size.
    """
    if found.method.rate is None:
        raise NearplaneError(f"{found.method.name} has no rate that a size could set")
    entries = codes.ENTRY_BYTES * (len(found.model.state_dict()) - len(found.layers))
    others = found.unquantized * found.dtype.itemsize + entries + FILE_BYTES
    bpw = 8 * (size - others) / found.quantized
    if bpw <= 0:
        raise NearplaneError(
            f"{size / 1e6:.1f} MB cannot be met: what is not quantized takes {others / 1e6:.1f} MB"
        )
    try:
        method = found.method.with_bpw(bpw)
        check_layers(method, found.layers)
    except NearplaneError as error:
        raise NearplaneError(f"{size / 1e6:.1f} MB mean {bpw:.3f} bits per weight: {error}") from (
            error
        )
    return replace(found, method=method)


def bits_of(found: Survey) -> float:
    """Return about the bits per quantized weight of everything stored for it."""
    return 8 * found.record_bytes / found.quantized

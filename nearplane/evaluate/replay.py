"""Run calibration again with a checkpoint's values, to compute the loss of every layer anew."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearplane import codes
from nearplane.export.checkpoint_reader import Checkpoint
from nearplane.methods import RTN
from nearplane.model.blocks import Layer, find_blocks
from nearplane.model.experts import split_experts_
from nearplane.model.open_model import OpenModel
from nearplane.model.selection import Rules, Selection
from nearplane.walk.input_statistics import InputStatistics
from nearplane.walk.placement import ActivationLimits, Placement
from nearplane.walk.rounding import Rounder
from nearplane.walk.walk import Prepared, Walk


@dataclass
class Replay(Walk):
    """A `Walk` that takes values from a checkpoint instead of quantizing.

    It yields (layer, value, loss) for every layer of the checkpoint.
    """

    checkpoint: Checkpoint = field(kw_only=True)

    def rounder_for(self, found: Prepared) -> Rounder:
        parts = found.placement, found.trace, found.layers, self.rules, self.ranks, self.bits
        return StoredValues(self.method, *parts, checkpoint=self.checkpoint)


@dataclass
class StoredValues(Rounder):
    """Replaces weights by the values of a checkpoint, where `Rounder` would quantize them."""

    checkpoint: Checkpoint = field(kw_only=True)

    def round(
        self, layers: list[Layer], inputs: InputStatistics, row_step: Tensor | None = None
    ) -> Iterator[Any]:
        """Yield every layer with its value and its loss, Σ error · hessian · errorᵀ over rows."""
        hessian = inputs.hessian.double()
        for layer in layers:
            value = decoded(self.checkpoint, layer.name)
            error = (self.original(layer) - value).double()
            layer.assign(value)
            self.rounded.add(layer)
            yield layer, value, float(((error @ hessian) * error).sum())


def replayed_losses(
    source: OpenModel,
    tokens: Int64[Tensor, "n length"],
    checkpoint: Checkpoint,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[str, float]]:
    """Yield name and loss of every compressed layer; the weights of `source` are overwritten.

    The inputs of a layer depend only on the layers before it. These have the values they had when
    it was quantized, so its Hessian and its loss come out the same. If `source` reads blocks from
    disk, one block is in memory at a time. Hidden states are in a temporary file.

    - `tokens`: the calibration sequences of the run.
    - `dtype`: the dtype that the run computed in; None for the model's own.
    """
    split_experts_(source.model)
    limits = ActivationLimits(directory=writable_directory(checkpoint.directory))
    place = Placement(source.model, source.loader, dtype, limits)
    walk = Replay(
        source.model,
        RTN(),
        tokens,
        selection=stored_layers(source.model, checkpoint),
        placement=place,
        checkpoint=checkpoint,
    )
    for layer, _, loss in walk:
        yield layer.name, loss


def stored_layers(model: Any, checkpoint: Checkpoint) -> Selection:
    """Return the layers of `model` that the checkpoint stores compressed."""
    prefix = f"{find_blocks(model)[0]}."
    names = dict(model.named_modules())
    known = [name for name in checkpoint.layers if name in names]
    inside = tuple(name for name in known if name.startswith(prefix))
    outside = tuple(name for name in known if not name.startswith(prefix))
    return Selection(Rules(), inside, outside)


def writable_directory(directory: Path) -> Path:
    """Return the parent of `directory` if it is writable, else the system's temporary directory."""
    parent = directory.expanduser().resolve().parent
    try:
        with tempfile.TemporaryFile(dir=parent):
            return parent
    except OSError:
        return Path(tempfile.gettempdir())


def decoded(checkpoint: Checkpoint, name: str) -> Float[Tensor, "rows columns"]:
    """Return the dequantized weight of a layer, from its record."""
    return codes.unpack(checkpoint.record(name)).value()

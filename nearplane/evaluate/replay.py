"""The walk again with stored values in the place of rounding: every layer's loss comes out anew."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearplane import codes, types
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
    """A walk that puts a checkpoint's values into the model and yields (layer, value, loss)."""

    checkpoint: Checkpoint = field(kw_only=True)

    def rounder_for(self, found: Prepared) -> Rounder:
        parts = found.placement, found.trace, found.layers, self.rules, self.ranks, self.bits
        return StoredValues(self.method, *parts, checkpoint=self.checkpoint)


@dataclass
class StoredValues(Rounder):
    """Takes what was stored of the layers in place of rounding them."""

    checkpoint: Checkpoint = field(kw_only=True)

    def round(self, layers: list[Layer], inputs: InputStatistics) -> Iterator[Any]:
        """Yield every layer with its value and Σ error · hessian · errorᵀ."""
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
    """Yield name and loss of every stored layer; the model is used up.

    What a layer is given depends only on the layers before it, and they hold the values that they
    held when it was rounded. Of the weights one block is in memory at a time where the source
    allows it, and hidden states are in a file beside the checkpoint.

    - `dtype`: that the walk computed in; the model's own if None.
    """
    split_experts_(source.model)
    limits = ActivationLimits(directory=writable_beside(checkpoint.directory))
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
    """Return the selection of the layers that a checkpoint stores compressed, those of `model`."""
    prefix = f"{find_blocks(model)[0]}."
    names = dict(model.named_modules())
    known = [name for name in checkpoint.layers if name in names]
    inside = tuple(name for name in known if name.startswith(prefix))
    outside = tuple(name for name in known if not name.startswith(prefix))
    return Selection(Rules(), inside, outside)


def writable_beside(directory: Path) -> Path:
    """Return the directory above one if files can be made there, else where temporary ones go."""
    above = directory.expanduser().resolve().parent
    try:
        with tempfile.TemporaryFile(dir=above):
            return above
    except OSError:
        return Path(tempfile.gettempdir())


def decoded(checkpoint: Checkpoint, name: str) -> Float[Tensor, "rows columns"]:
    """Return the value that a layer's record holds."""
    stored = codes.unpack(checkpoint.record(name))
    return types.value(stored.code, stored.step, stored.group_size, stored.outliers)

"""Layers of a model that share the weight of a compressed one: they multiply by its record."""

import re
from typing import TYPE_CHECKING, Any

from torch import nn

from nearplane.export import checkpoint_format as fmt
from nearplane.export.embedding import CompressedEmbedding, TiedLinear
from nearplane.types import NearplaneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def shape_of(module: nn.Module) -> tuple[int, int] | None:
    """Return (out_features, in_features) of an nn.Linear or Conv1D, None for another module."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return module.nf, module.nx
    return (module.out_features, module.in_features) if isinstance(module, nn.Linear) else None


def tied_to(model: "PreTrainedModel", name: str) -> list[str]:
    """Return the layers that share the weight of layer `name`.

    Raises NearplaneError if something else shares it, as an embedding does.
    """
    pairs = model.all_tied_weights_keys.items()
    weight = f"{name}.weight"
    sources = {source for target, source in pairs if weight in (target, source)}
    group = sources | {target for target, source in pairs if source in sources}
    twins = [tied.removesuffix(".weight") for tied in sorted(group - {weight})]
    if any(shape_of(model.get_submodule(twin)) is None for twin in twins):
        raise NearplaneError(
            f"{name} is compressed, but config.json ties it to another tensor: "
            "it must say tie_word_embeddings = false"
        )
    return twins


def share_record(model: "PreTrainedModel", twin: str, name: str) -> None:
    """Let layer `twin` multiply by the record of layer or embedding `name`, once that is loaded."""
    layer = model.get_submodule(name)
    if isinstance(layer, CompressedEmbedding):
        # there are no weights that transformers could tie once more
        keys: Any = model._tied_weights_keys or {}
        weight = f"{twin}.weight"
        others = {tied: source for tied, source in keys.items() if not re.fullmatch(tied, weight)}
        model.__dict__["_tied_weights_keys"] = others
        return
    model.set_submodule(twin, layer)
    for part in (fmt.RECORD, ".bias"):
        model.all_tied_weights_keys[twin + part] = name + part


def leave_out(model: "PreTrainedModel", name: str, twins: list[str]) -> None:
    """Put nothing in the place of layers that share the weight of layer `name`, for now.

    transformers would ask the files for their records, and tie what are no parameters. An output
    head that shares that of an embedding is put in its place at once, since its bias is its own.
    """
    layer: Any = model.get_submodule(name)
    looks_up = isinstance(layer, CompressedEmbedding)
    for module in (name, *twins):
        for part in (".weight",) if looks_up else (".weight", ".bias"):
            model.all_tied_weights_keys.pop(module + part, None)
    for twin in twins:
        head: Any = model.get_submodule(twin)
        model.set_submodule(twin, TiedLinear(head, layer) if looks_up else nn.Identity())

"""transformers reads, writes and dequantizes our checkpoints; importing this registers it.

| theirs | ours |
|---|---|
| quant_method "nearplane" | the checkpoint of docs/formats/checkpoint.md |
| quantization config | config.json's `quantization_config`, kept whole |
| pre-quantized | always; `nearplane.quantize` makes what `from_pretrained` reads |
"""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.core_model_loading import WeightConverter
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from nearplane.codes import CorruptError
from nearplane.export import checkpoint_format as fmt
from nearplane.export.checkpoint_reader import tensors_in
from nearplane.export.compressed_linear import CompressedLinear, empty_like
from nearplane.export.record_check import check_record
from nearplane.model.experts import Experts, is_fused, join_experts_, split_experts_
from nearplane.model.untrusted_files import check_numbers
from nearplane.types import NearplaneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NearplaneConfig(QuantizationConfigMixin):
    """A checkpoint's `quantization_config`, with keys that this version does not know kept."""

    def __init__(
        self,
        format_version: int = fmt.FORMAT_VERSION,
        layers: dict[str, Any] | None = None,
        quant_method: str = fmt.METHOD,
        lay_out: bool = True,
        stored_dtype: str | None = None,
        **other: Any,
    ):
        # of this load alone: whether records are put into the form that kernels multiply by, and
        # the type that what is not compressed is saved in again, if it is computed in another
        self.lay_out, self.stored_dtype = lay_out, stored_dtype
        self.quant_method = quant_method  # pyright: ignore[reportAttributeAccessIssue]
        self.format_version = format_version
        self.layers = layers or {}
        self.other = other

    @classmethod
    def from_dict(cls, config_dict: Any, return_unused_kwargs: bool = False, **more: Any) -> Any:
        # before __init__ takes its parts, which may be of any type
        fmt.check_quantization_config(config_dict, "quantization_config")
        return super().from_dict(config_dict, return_unused_kwargs, **more)

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy(self.other) | {
            "quant_method": self.quant_method,
            "format_version": self.format_version,
            "layers": copy.deepcopy(self.layers),
        }


class NearplaneQuantizer(HfQuantizer):
    """Puts compressed layers into a model before its tensors are loaded, and checks them after."""

    requires_calibration = True
    quantization_config: NearplaneConfig

    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return True

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return False

    def get_state_dict_and_metadata(self, model: "PreTrainedModel") -> tuple[Any, dict[str, str]]:
        """Return what `save_pretrained` writes: numbers that were only widened, as they were."""
        stored = self.quantization_config.stored_dtype
        if stored is None:
            return None, {}
        return narrowed(model.state_dict(), getattr(torch, stored)), {}

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        # config.json names no type, and the first shard holds nothing but records
        return dtype if dtype.is_floating_point else torch.get_default_dtype()

    def _process_model_before_weight_loading(
        self,
        model: "PreTrainedModel",
        checkpoint_files: list[str] | None = None,
        device_map: Any = None,
        **more: Any,
    ) -> None:
        # accelerate moves what it offloads in and out by the names of the checkpoint's tensors
        stays = not isinstance(device_map, dict) or len(set(device_map.values())) <= 1
        self.lays_out = stays and self.quantization_config.lay_out
        tied = _tied_layers(model)
        layers = self.quantization_config.layers
        split_named_experts_(model, layers, lambda name: _aliases(model, name))
        self.entries: dict[str, dict[str, Any]] = {}
        for stored_name, entry in layers.items():
            name = _name_in(model, stored_name)
            if name in tied:
                raise NearplaneError(
                    f"{name} is compressed, but config.json ties it to another tensor: "
                    "it must say tie_word_embeddings = false"
                )
            model.set_submodule(name, _replacement(model.get_submodule(name), entry, name))
            self.entries[name] = entry
        if checkpoint_files:
            _check_present(model, self.entries, checkpoint_files)

    def update_weight_conversions(self, weight_conversions: list, model: "PreTrainedModel") -> list:
        """Return what is done to names on loading: nothing that would fuse experts."""
        conversions = super().update_weight_conversions(weight_conversions, model)
        if not any(isinstance(module, Experts) for module in model.modules()):
            return conversions
        return [conversion for conversion in conversions if not _fuses_experts(conversion)]

    def _process_model_after_weight_loading(
        self, model: "PreTrainedModel", **more: Any
    ) -> "PreTrainedModel":
        for name, entry in self.entries.items():
            record = model.get_buffer(f"{name}{fmt.RECORD}")
            # a record that accelerate left on disk is on the meta device
            if record.is_meta:
                continue
            check_record(record, entry, name)
            if self.lays_out:
                _lay_out(model.get_submodule(name), name)
        return model

    def _dequantize(
        self, model: "PreTrainedModel", dtype: torch.dtype | None = None
    ) -> "PreTrainedModel":
        dtype = model.dtype if dtype is None else dtype
        for name, module in list(model.named_modules()):
            if isinstance(module, CompressedLinear):
                model.set_submodule(name, plain(module, dtype))
        join_experts_(model)
        if any(map(is_fused, model.modules())):
            # what reading our names took is not what the family's own names for experts take
            model.__dict__.pop("_weight_conversions", None)
        # a cast that changes nothing would still touch what the model keeps in float32
        return model if model.dtype == dtype else model.to(dtype)  # pyright: ignore[reportArgumentType]


def split_named_experts_(
    model: nn.Module, layers: Iterable[str], aliases: Callable[[str], list[str]]
) -> None:
    """Let `Experts` stand in for the fused modules of which `layers` has a part.

    - `aliases`: what the model may call what a checkpoint calls so.
    """
    above = {above for layer in layers for above in names_above(layer)}
    wanted = {alias for name in above for alias in aliases(name)}
    split_experts_(model, wanted)


def names_above(layer: str) -> list[str]:
    """Return the names of the modules around a layer: a.b and a of a.b.c."""
    parts = layer.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def narrowed(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return a state dict with its numbers in `dtype`, but for tensors that it cannot hold exactly.

    Tensors that share their memory share it again.
    """
    made: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.is_floating_point() and tensor.dtype != dtype and key not in made:
            narrow = tensor.to(dtype)
            exact = tensor.element_size() > narrow.element_size() and narrow.to(tensor.dtype).equal(
                tensor
            )
            made[key] = narrow if exact else tensor
        state[name] = made.get(key, tensor)
    return state


def plain(layer: CompressedLinear, dtype: torch.dtype) -> nn.Module:
    """Return the nn.Linear or Conv1D that `layer` replaced, holding its decoded weight."""
    from transformers.pytorch_utils import Conv1D

    value = layer.value().to(dtype)
    # on the meta device nothing is allocated or initialised for a weight that is replaced below
    with torch.device("meta"):
        if layer.transposed:
            module = Conv1D(layer.out_features, layer.in_features)
        else:
            module = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    module.weight = nn.Parameter(value.t().contiguous() if layer.transposed else value)
    if layer.bias is not None:
        module.bias = nn.Parameter(layer.bias.detach().to(dtype))
    module.training = layer.training
    return module


def _fuses_experts(conversion: Any) -> bool:
    targets = conversion.target_patterns
    return isinstance(conversion, WeightConverter) and any("experts" in name for name in targets)


def _replacement(module: nn.Module, entry: dict[str, Any], name: str) -> CompressedLinear:
    shape = _shape_of(module)
    if shape != (entry["rows"], entry["columns"]):
        raise NearplaneError(
            f"{name} is compressed as {entry['rows']} x {entry['columns']}, "
            f"but the model has a {type(module).__name__} of {shape or 'no shape'} there"
        )
    return empty_like(module, entry["rows"], entry["columns"], entry["bytes"])


def _lay_out(layer: nn.Module, name: str) -> None:
    try:
        layer.lay_out()
    except CorruptError as error:
        raise NearplaneError(f"{name}: {error}") from error


def _shape_of(module: nn.Module) -> tuple[int, int] | None:
    """Return (out, in) of a linear layer, None for another module."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return module.nf, module.nx
    return (module.out_features, module.in_features) if isinstance(module, nn.Linear) else None


def _aliases(model: "PreTrainedModel", name: str) -> list[str]:
    """Return what `name` is called in this model, or in one that has it as its base or head.

    AutoModel reads the checkpoint of AutoModelForCausalLM, where all names begin with "model.".
    """
    prefix = f"{model.base_model_prefix}."
    return [name, name.removeprefix(prefix), prefix + name]


def _name_in(model: "PreTrainedModel", name: str) -> str:
    for alias in _aliases(model, name):
        try:
            model.get_submodule(alias)
            return alias
        except AttributeError:
            continue
    raise NearplaneError(f"config.json compresses {name!r}, which {type(model).__name__} lacks")


def _tied_layers(model: "PreTrainedModel") -> set[str]:
    tied = model.all_tied_weights_keys
    return {name.removesuffix(".weight") for name in [*tied.keys(), *tied.values()]}


def _check_present(
    model: "PreTrainedModel", entries: dict[str, dict[str, Any]], checkpoint_files: list[str]
) -> None:
    """Raise NearplaneError unless the files hold every record, and the biases that go with them.

    transformers would only warn, and leave memory as it found it in their place.
    """
    stored: dict[str, list[int]] = {}
    for file in checkpoint_files:
        stored |= tensors_in(Path(file))
    check_numbers(model, stored.values())
    for name, entry in entries.items():
        needed = [fmt.RECORD] if model.get_submodule(name).bias is None else [fmt.RECORD, ".bias"]
        for part in needed:
            found = [stored[n + part] for n in _aliases(model, name) if n + part in stored]
            if not found:
                raise NearplaneError(f"the checkpoint's files lack the tensor {name + part!r}")
            if part == fmt.RECORD and found[0] != [entry["bytes"]]:
                raise NearplaneError(
                    f"{name}: the record has shape {found[0]}, "
                    f"where config.json says {entry['bytes']} bytes"
                )


# importing twice, as importlib.reload does, is no error
if fmt.METHOD not in AUTO_QUANTIZER_MAPPING:
    register_quantization_config(fmt.METHOD)(NearplaneConfig)
    register_quantizer(fmt.METHOD)(NearplaneQuantizer)

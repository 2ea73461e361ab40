"""Let transformers read, write and dequantize nearplane checkpoints; importing this registers it.

| theirs | ours |
|---|---|
| quant_method "nearplane" | the checkpoint of docs/formats/checkpoint.md |
| quantization config | config.json's `quantization_config`, unknown keys included |
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
from nearplane.export.embedding import CompressedEmbedding, TiedLinear
from nearplane.export.linear import CompressedLinear, empty_like
from nearplane.export.one_token import attach, detach
from nearplane.export.record_check import check_record
from nearplane.export.saved_again import keep_sums
from nearplane.export.tied_weights import leave_out, shape_of, share_record, tied_to
from nearplane.model.experts import Experts, join_experts_, split_experts_
from nearplane.model.untrusted_files import check_numbers
from nearplane.types import NearplaneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EMPTY = "no_parameters"  # the only parameter of a model whose layers are all compressed


class NearplaneConfig(QuantizationConfigMixin):
    """The `quantization_config` of config.json; keys that this version does not know are kept.

    - `lay_out`: whether loading converts records into the form that this machine's kernels use.
      Not saved.
    - `stored_dtype`: the dtype that `save_pretrained` stores uncompressed tensors in, where they
      are loaded in another one; None for the dtype they are loaded in. Not saved.
    """

    def __init__(
        self,
        format_version: int = fmt.FORMAT_VERSION,
        layers: dict[str, Any] | None = None,
        quant_method: str = fmt.METHOD,
        lay_out: bool = True,
        stored_dtype: str | None = None,
        **unknown_keys: Any,
    ):
        self.lay_out, self.stored_dtype = lay_out, stored_dtype
        self.quant_method = quant_method  # pyright: ignore[reportAttributeAccessIssue]
        self.format_version = format_version
        self.layers = layers or {}
        self.unknown_keys = unknown_keys

    @classmethod
    def from_dict(cls, config_dict: Any, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        # config.json may hold values of any type, so they are checked before __init__ takes them
        fmt.check_quantization_config(config_dict, "quantization_config")
        return super().from_dict(config_dict, return_unused_kwargs, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy(self.unknown_keys) | {
            "quant_method": self.quant_method,
            "format_version": self.format_version,
            "layers": copy.deepcopy(self.layers),
        }


class NearplaneQuantizer(HfQuantizer):
    """Makes layers `CompressedLinear` before a model's tensors are loaded; checks them after."""

    requires_calibration = True
    quantization_config: NearplaneConfig

    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return True

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        # adapters on it are: gradients go through compressed layers
        return True

    def get_state_dict_and_metadata(self, model: "PreTrainedModel") -> tuple[Any, dict[str, str]]:
        """Return the state dict that `save_pretrained` writes, in the dtype of the checkpoint."""
        stored = self.quantization_config.stored_dtype
        tied = [t for t in model.all_tied_weights_keys.items() if t[0].endswith(fmt.RECORD)]
        if stored is None and not tied and not hasattr(model, EMPTY):
            return None, {}
        state = model.state_dict()
        state.pop(EMPTY, None)
        # what is laid out in memory is made a record anew for each name
        state.update({target: state[source] for target, source in tied})
        return state if stored is None else cast_where_exact(state, getattr(torch, stored)), {}

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        # if config.json states no dtype, transformers takes that of a tensor, which may be a record
        return dtype if dtype.is_floating_point else torch.get_default_dtype()

    def _process_model_before_weight_loading(
        self,
        model: "PreTrainedModel",
        checkpoint_files: list[str] | None = None,
        device_map: Any = None,
        **kwargs: Any,
    ) -> None:
        devices = device_map if isinstance(device_map, dict) else {}
        layers = self.quantization_config.layers
        split_named_experts_(model, layers, lambda name: _aliases(model, name))
        for module in model.modules():
            if any(isinstance(child, Experts) for child in module.children()):
                # some classes would initialise the fused matrices from here
                module._is_hf_initialized = True  # pyright: ignore[reportArgumentType]
        self.entries: dict[str, dict[str, Any]] = {}
        self.offloaded: set[str] = set()
        # layer -> the name of the layer that it shares its weight with
        self.tied: dict[str, str] = {}
        for stored_name, entry in layers.items():
            name = _name_in(model, stored_name)
            if name is None:
                continue
            twins = tied_to(model, name)
            self.tied |= dict.fromkeys(twins, name)
            model.set_submodule(name, _replacement(model.get_submodule(name), entry, name))
            leave_out(model, name, twins)
            self.entries[name] = entry
            if is_offloaded(name, devices):
                self.offloaded.add(name)
        if checkpoint_files:
            _check_present(model, self.entries, checkpoint_files)

    def update_weight_conversions(self, weight_conversions: list, model: "PreTrainedModel") -> list:
        """Return transformers' conversions on loading without those that fuse experts."""
        conversions = super().update_weight_conversions(weight_conversions, model)
        if not any(isinstance(module, Experts) for module in model.modules()):
            return conversions
        return [conversion for conversion in conversions if not _fuses_experts(conversion)]

    def _process_model_after_weight_loading(
        self, model: "PreTrainedModel", **kwargs: Any
    ) -> "PreTrainedModel":
        for name, entry in self.entries.items():
            record = model.get_buffer(f"{name}{fmt.RECORD}")
            # accelerate offloaded it to disk, and left an empty tensor on the meta device
            if record.is_meta:
                continue
            check_record(record, entry, name)
            # on the device where transformers has put it; accelerate moves what it offloads by the
            # names of the checkpoint's tensors, so that these layers keep their records
            if self.quantization_config.lay_out and name not in self.offloaded:
                _lay_out(model.get_submodule(name), name)
        for twin, name in self.tied.items():
            share_record(model, twin, name)
        if next(model.parameters(), None) is None:
            # transformers asks a model's first parameter which device and type it is of
            records = next(model.buffers())
            dtype: Any = model.config.dtype
            empty = torch.empty(0, dtype=dtype, device=records.device)
            model.register_parameter(EMPTY, nn.Parameter(empty, requires_grad=False))
        # `save_pretrained` is to write the names of this checkpoint, not those of another format
        model.__dict__["_weight_conversions"] = []
        attach(model)
        keep_sums()
        return model

    def _dequantize(
        self, model: "PreTrainedModel", dtype: torch.dtype | None = None
    ) -> "PreTrainedModel":
        dtype = model.dtype if dtype is None else dtype
        detach(model)
        decoded: dict[nn.Module, nn.Module] = {}  # layers that shared a record share a weight
        for name, module in list(model.named_modules(remove_duplicate=False)):
            if isinstance(module, CompressedLinear | TiedLinear):
                decoded[module] = decoded.get(module) or dequantized(module, dtype)
                model.set_submodule(name, decoded[module])
        for module, plain in decoded.items():
            if isinstance(module, TiedLinear):
                plain.weight = decoded[module.shared[0]].weight
        join_experts_(model)
        # now it is to write what transformers writes of such a model
        for name in ("_weight_conversions", "_tied_weights_keys"):
            model.__dict__.pop(name, None)
        # even a cast to the same dtype would change modules that the model keeps in float32
        return model if model.dtype == dtype else model.to(dtype)  # pyright: ignore[reportArgumentType]


def is_offloaded(name: str, devices: dict[str, Any]) -> bool:
    """Whether accelerate moves a module in and out while the model runs, under a device map.

    It does so with modules on disk, and with those on the CPU where others are on an accelerator.
    """
    prefixes = [name, *reversed(parent_names(name)), ""]
    own = next((str(devices[prefix]) for prefix in prefixes if prefix in devices), "")
    elsewhere = {str(device) for device in devices.values()} - {"cpu", "disk", "meta"}
    return own == "disk" or (own == "cpu" and bool(elsewhere))


def split_named_experts_(
    model: nn.Module, layers: Iterable[str], aliases: Callable[[str], list[str]]
) -> None:
    """Replace the fused experts that have a layer in `layers` by `Experts`, in place.

    - `aliases`: returns the names that a module of the checkpoint may have in the model.
    """
    parents = {parent for layer in layers for parent in parent_names(layer)}
    split_experts_(model, {alias for name in parents for alias in aliases(name)})


def parent_names(layer: str) -> list[str]:
    """Return the names of the modules that contain a layer: "a" and "a.b" for "a.b.c"."""
    parts = layer.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def cast_where_exact(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Cast the floating-point tensors of a state dict to the narrower `dtype` where that is exact.

    Tensors that shared memory before, such as tied weights, share it afterwards.
    """
    cast: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.is_floating_point() and tensor.dtype != dtype and key not in cast:
            narrow = tensor.to(dtype)
            exact = tensor.element_size() > narrow.element_size() and narrow.to(tensor.dtype).equal(
                tensor
            )
            cast[key] = narrow if exact else tensor
        state[name] = cast.get(key, tensor)
    return state


def dequantized(layer: Any, dtype: torch.dtype) -> nn.Module:
    """Return the module that `layer` replaced, with the decoded weight.

    A head that shares the weight of an embedding has none yet.
    """
    from transformers.pytorch_utils import Conv1D

    if isinstance(layer, CompressedEmbedding):
        embedding = layer.embedding
        embedding.padding_idx = layer.padding_idx
        del embedding.weight
        embedding.weight = nn.Parameter(layer.value().to(dtype))
        return embedding
    if isinstance(layer, TiedLinear):
        with torch.device("meta"):
            module = nn.Linear(layer.in_features, layer.out_features, bias=False)
        bias: Any = layer.bias
        if bias is not None:
            module.bias = nn.Parameter(bias.detach().to(dtype))
        module.training = layer.training
        return module
    value = layer.value().to(dtype)
    # the meta device allocates no memory for the initial weight, which is replaced below
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
    """Whether a conversion would join the weights of experts into one tensor."""
    targets = conversion.target_patterns
    return isinstance(conversion, WeightConverter) and any("experts" in name for name in targets)


def _replacement(module: nn.Module, entry: dict[str, Any], name: str) -> CompressedLinear:
    """Return an empty compressed layer; NearplaneError if `module` has another shape."""
    if isinstance(module, nn.Embedding) and tuple(module.weight.shape) == (
        entry["rows"],
        entry["columns"],
    ):
        device = module.weight.device
        record = torch.empty(entry["bytes"], dtype=torch.uint8, device=device)
        return CompressedEmbedding(module, record)
    shape = shape_of(module)
    if shape != (entry["rows"], entry["columns"]):
        raise NearplaneError(
            f"{name} is compressed as {entry['rows']} x {entry['columns']}, "
            f"but the model has a {type(module).__name__} of {shape or 'no shape'} there"
        )
    return empty_like(module, entry["rows"], entry["columns"], entry["bytes"])


def _lay_out(layer: Any, name: str) -> None:
    """Convert the record for this machine's kernels; NearplaneError if it is corrupt."""
    try:
        layer.lay_out()
    except CorruptError as error:
        raise NearplaneError(f"{name}: {error}") from error


def _aliases(model: "PreTrainedModel", name: str) -> list[str]:
    """Return the names that the checkpoint's module `name` may have in `model`.

    AutoModel reads checkpoints of AutoModelForCausalLM, where names begin with "model.", and the
    other way round.
    """
    prefix = f"{model.base_model_prefix}."
    return [name, name.removeprefix(prefix), prefix + name]


def _name_in(model: "PreTrainedModel", name: str) -> str | None:
    """Return the name in `model` of the checkpoint's module; None for a head that it is without.

    Raises NearplaneError if there is no such module in a model with a head.
    """
    for alias in _aliases(model, name):
        try:
            model.get_submodule(alias)
            return alias
        except AttributeError:
            continue
    if model.base_model is model and not name.startswith(f"{model.base_model_prefix}."):
        return None
    raise NearplaneError(f"config.json compresses {name!r}, which {type(model).__name__} lacks")


def _check_present(
    model: "PreTrainedModel", entries: dict[str, dict[str, Any]], checkpoint_files: list[str]
) -> None:
    """Raise NearplaneError unless the files hold the record and the bias of every compressed layer.

    transformers would only warn about missing ones, and use uninitialised memory.
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


# registering again, as importlib.reload would, is an error in transformers
if fmt.METHOD not in AUTO_QUANTIZER_MAPPING:
    register_quantization_config(fmt.METHOD)(NearplaneConfig)
    register_quantizer(fmt.METHOD)(NearplaneQuantizer)

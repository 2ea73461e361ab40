"""LoRA adapters of peft on compressed layers; importing this teaches peft, which has no plugins.

The adapter's two matrices run beside the compressed weight, which stays as it is: it can be trained
on, switched off, saved and loaded, but nothing can be merged into a record.
"""

from typing import Any

from peft.tuners import tuners_utils
from peft.tuners.lora import layer as lora
from peft.tuners.lora.model import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from nearplane.export.embedding import CompressedEmbedding, TiedLinear
from nearplane.export.linear import CompressedLinear
from nearplane.types import NearplaneError

# initial values that leave the weight as it is; others move a part of it into the adapter
BESIDE = (True, False, "gaussian", "orthogonal", "eva")


class CompressedLoraLinear(lora.Linear):
    """peft's layer for nn.Linear on a compressed one.

    Raises NearplaneError for what would have to change the compressed weight.
    """

    def update_layer(self, adapter_name: str, *args: Any, config: Any, **options: Any) -> None:
        if config.init_lora_weights not in BESIDE:
            raise NearplaneError(
                f"init_lora_weights={config.init_lora_weights!r} changes the weight, which is "
                f"compressed: use one of {', '.join(map(repr, BESIDE))}"
            )
        super().update_layer(adapter_name, *args, config=config, **options)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise NearplaneError(
            "an adapter cannot be merged into compressed layers: load the checkpoint with "
            "nearplane.load(DIR, dequantize=True), put the adapter on that and merge there"
        )


_created_by_peft = LoraModel._create_new_module


def _create_new_module(lora_config: Any, adapter_name: str, target: Any, **options: Any) -> Any:
    """Return what takes the place of a layer that an adapter is put on."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if isinstance(base, CompressedEmbedding | TiedLinear):
        raise NearplaneError(
            "an adapter cannot be put on a compressed embedding, or on the output head that shares "
            "its weight: name other target_modules"
        )
    if isinstance(base, CompressedLinear) and options.get("parameter_name") is None:
        options.pop("parameter_name", None)
        return CompressedLoraLinear(target, adapter_name, config=lora_config, **options)
    return _created_by_peft(lora_config, adapter_name, target, **options)


def _include_compressed_layers(peft_config: Any, model: Any) -> Any:
    """Return the configuration with "all-linear" spelled out, compressed layers among them."""
    wanted = getattr(peft_config, "target_modules", None)
    named = {n for n, m in model.named_modules() if isinstance(m, CompressedLinear)}
    if not (named and isinstance(wanted, str) and wanted.lower() == "all-linear"):
        return _included_by_peft(peft_config, model)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    plain = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    peft_config.target_modules = named | plain
    return peft_config


LoraModel._create_new_module = staticmethod(_create_new_module)
_included_by_peft = tuners_utils._maybe_include_all_linear_layers
tuners_utils._maybe_include_all_linear_layers = _include_compressed_layers

"""vLLM's quantization config of a checkpoint; importing this registers it.

| theirs | ours |
|---|---|
| prefix | a layer's name; "qkv_proj" and the like stand for several layers |
| packed_modules_mapping | the parts of such a fused layer, in order |
| quantization config | config.json's `quantization_config`, of which `layers` is used |
"""

# pyright: reportMissingImports=false

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)

from nearplane.export import checkpoint_format as fmt
from nearplane.export.vllm.shards import Stored
from nearplane.types import NearplaneError

if TYPE_CHECKING:
    from vllm.model_executor.models.utils import WeightsMapper


@register_quantization_config(fmt.METHOD)
class NearplaneConfig(QuantizationConfig):
    """The compressed layers of a checkpoint, by the names that vLLM gives them."""

    def __init__(self, layers: dict[str, Stored]):
        super().__init__()
        self.layers = layers
        self.found: set[str] = set()  # names of those that vLLM has a layer for
        self.pipelined = False

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "NearplaneConfig":
        entries = fmt.check_quantization_config(config, "quantization_config")
        return cls({name: Stored.from_entry(name, entry) for name, entry in entries.items()})

    def get_name(self) -> str:
        return fmt.METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        # the reference needs no kernel of its own
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    def apply_vllm_mapper(self, hf_to_vllm_mapper: "WeightsMapper") -> None:
        self.layers = hf_to_vllm_mapper.apply_dict(self.layers)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Return how a layer is multiplied; None leaves the choice to vLLM."""
        from vllm.model_executor.layers.fused_moe import RoutedExperts
        from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        from nearplane.export.vllm.linear_method import NearplaneHeadMethod, NearplaneLinearMethod

        if isinstance(layer, RoutedExperts):
            self._refuse_experts(prefix)
        if not isinstance(layer, LinearBase | ParallelLMHead):
            return None
        parts = self.parts_of(prefix)
        self.found |= {part.name for part in parts}
        self.pipelined = _is_pipelined()
        if isinstance(layer, ParallelLMHead):
            return NearplaneHeadMethod(self, parts) if parts else None
        return NearplaneLinearMethod(self, parts) if parts else UnquantizedLinearMethod()

    def check_found(self) -> None:
        """Raise NearplaneError if vLLM has no layer for a record: it may have dropped it unsaid."""
        lost = sorted({part.name for part in self.layers.values()} - self.found)
        # stages of a pipeline have some of the layers each
        if lost and not self.pipelined:
            raise NearplaneError(
                f"{lost[0]} is compressed, but vLLM's model has no such layer "
                f"({len(lost)} in all): nearplane cannot serve this model"
            )

    def parts_of(self, prefix: str) -> list[Stored]:
        """Return the records of a layer in the order of its outputs; [] if it is not compressed."""
        if prefix in self.layers:
            return [self.layers[prefix]]
        above, dot, leaf = prefix.rpartition(".")
        names = [above + dot + part for part in self.packed_modules_mapping.get(leaf, [])]
        lacking = [name for name in names if name not in self.layers]
        if len(lacking) == len(names):
            return []
        if lacking:
            raise NearplaneError(
                f"vLLM computes {' and '.join(names)} as one layer, so all of them must be "
                f"compressed or none: {' and '.join(lacking)} is not"
            )
        return [self.layers[name] for name in names]

    def _refuse_experts(self, prefix: str) -> None:
        inside = [name for name in self.layers if name.startswith(prefix + ".")]
        if inside:
            raise NearplaneError(
                f"{inside[0]} is compressed, but vLLM computes experts together, "
                "which nearplane cannot serve"
            )


def _is_pipelined() -> bool:
    """Whether vLLM spreads the layers over several processes."""
    from vllm.config import (
        get_current_vllm_config_or_none,  # pyright: ignore[reportAttributeAccessIssue]
    )

    current = get_current_vllm_config_or_none()
    return current is not None and current.parallel_config.pipeline_parallel_size > 1

"""The quantization config through which vLLM reads checkpoints; importing this registers it.

| theirs | ours |
|---|---|
| prefix | a layer's name; vLLM fuses several layers into one, such as "qkv_proj" |
| packed_modules_mapping | the names of the layers that a fused layer consists of, in order |
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
from nearplane.export.vllm.shards import LayerEntry
from nearplane.types import NearplaneError

if TYPE_CHECKING:
    from vllm.model_executor.models.utils import WeightsMapper


@register_quantization_config(fmt.METHOD)
class NearplaneVllmConfig(QuantizationConfig):
    """Tells vLLM which layers of a checkpoint are compressed, and how to multiply by them.

    - `layers`: the names that vLLM gives the compressed layers -> what config.json says of them.
    """

    def __init__(self, layers: dict[str, LayerEntry]):
        super().__init__()
        self.layers = layers
        self.found: set[str] = set()  # names of the compressed layers that vLLM's model has
        self.embedding_found = False  # whether vLLM's model has a compressed embedding
        self.pipelined = False

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "NearplaneVllmConfig":
        entries = fmt.check_quantization_config(config, "quantization_config")
        return cls({name: LayerEntry.from_json(name, entry) for name, entry in entries.items()})

    def get_name(self) -> str:
        return fmt.METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        # records can be decoded in plain torch, which runs on every GPU
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    def apply_vllm_mapper(self, hf_to_vllm_mapper: "WeightsMapper") -> None:
        self.layers = hf_to_vllm_mapper.apply_dict(self.layers)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """Return the method that computes a layer; None leaves the choice to vLLM."""
        from vllm.model_executor.layers.fused_moe import RoutedExperts
        from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
        from vllm.model_executor.layers.vocab_parallel_embedding import (
            ParallelLMHead,
            VocabParallelEmbedding,
        )

        from nearplane.export.vllm.linear_method import (
            NearplaneEmbeddingMethod,
            NearplaneHeadMethod,
            NearplaneLinearMethod,
            NearplaneTiedHeadMethod,
        )

        if isinstance(layer, RoutedExperts):
            self._refuse_experts(prefix)
        if not isinstance(layer, LinearBase | VocabParallelEmbedding):
            return None
        parts = self.parts_of(prefix)
        self.found |= {part.name for part in parts}
        self.pipelined = _is_pipelined()
        if isinstance(layer, ParallelLMHead):
            if not parts and self.embedding_found and _is_tied():
                return NearplaneTiedHeadMethod()
            return NearplaneHeadMethod(parts, self.check_found) if parts else None
        if isinstance(layer, VocabParallelEmbedding):
            self.embedding_found |= bool(parts)
            return NearplaneEmbeddingMethod(parts, self.check_found) if parts else None
        if not parts:
            return UnquantizedLinearMethod()
        return NearplaneLinearMethod(parts, self.check_found)

    def check_found(self) -> None:
        """Raise NearplaneError if vLLM's model lacks a compressed layer.

        vLLM itself may ignore tensors of a checkpoint that it has no layer for.
        """
        missing = sorted({part.name for part in self.layers.values()} - self.found)
        # with pipeline parallelism, each process has only some of the layers
        if missing and not self.pipelined:
            raise NearplaneError(
                f"{missing[0]} is compressed, but vLLM's model has no such layer "
                f"({len(missing)} in all): nearplane cannot serve this model"
            )

    def parts_of(self, prefix: str) -> list[LayerEntry]:
        """Return the compressed layers that vLLM's layer `prefix` consists of; [] if it has none.

        They are in the order of its outputs. NearplaneError if only some are compressed.
        """
        if prefix in self.layers:
            return [self.layers[prefix]]
        parent, dot, leaf = prefix.rpartition(".")
        names = [parent + dot + part for part in self.packed_modules_mapping.get(leaf, [])]
        plain = [name for name in names if name not in self.layers]
        if len(plain) == len(names):
            return []
        if plain:
            raise NearplaneError(
                f"vLLM computes {' and '.join(names)} as one layer, so all of them must be "
                f"compressed or none: {' and '.join(plain)} is not"
            )
        return [self.layers[name] for name in names]

    def _refuse_experts(self, prefix: str) -> None:
        """Raise NearplaneError if an expert of the mixture `prefix` is compressed."""
        inside = [name for name in self.layers if name.startswith(prefix + ".")]
        if inside:
            raise NearplaneError(
                f"{inside[0]} is compressed, but vLLM computes experts together, "
                "which nearplane cannot serve"
            )


def _is_pipelined() -> bool:
    """Whether vLLM runs with pipeline parallelism, where processes have different layers."""
    current = _current()
    return current is not None and current.parallel_config.pipeline_parallel_size > 1


def _is_tied() -> bool:
    """Whether the output head of the model that vLLM makes shares the embedding's weight."""
    current = _current()
    if current is None or current.model_config is None:
        return False
    config = current.model_config.hf_config.get_text_config()
    return bool(getattr(config, "tie_word_embeddings", False))


def _current() -> Any:
    from vllm.config import (
        get_current_vllm_config_or_none,  # pyright: ignore[reportAttributeAccessIssue]
    )

    return get_current_vllm_config_or_none()

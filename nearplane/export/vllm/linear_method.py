"""How vLLM loads and multiplies by a compressed layer, which may consist of several records.

| theirs | ours |
|---|---|
| shard id | which part of a fused layer a tensor of the checkpoint is |
| process_weights_after_loading | records are checked, cut, converted for the kernels, and freed |
| padded vocabulary | rows that vLLM adds to the output head; their logits are zero |
"""

# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearMethodBase
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.utils import set_weight_attrs

from nearplane.codes import CorruptError, resident
from nearplane.export import checkpoint_format as fmt
from nearplane.export.embedding import look_up
from nearplane.export.record_check import check_record
from nearplane.export.vllm.product import fused_linear
from nearplane.export.vllm.shards import (
    LayerEntry,
    TensorParallelRank,
    TensorParallelShard,
    shards_of,
)
from nearplane.types import NearplaneError

RECORD = fmt.RECORD.removeprefix(".")
LAID = "laid_"  # buffers laid_0, laid_1, ... hold the bytes that the kernels multiply by
SHARD_IDS = {"q": 0, "k": 1, "v": 2}


class NearplaneLinearMethod(LinearMethodBase):
    """Loads the records of one of vLLM's layers and multiplies by them.

    - `parts`: the compressed layers that vLLM's layer consists of, in the order of its outputs.
    - `check_found`: raises NearplaneError if vLLM's model lacks a compressed layer.
    """

    # records are loaded and cut in CPU memory, also where a GPU multiplies by them
    requires_device_loading = False

    def __init__(self, parts: list[LayerEntry], check_found: Callable[[], None]):
        self.parts = parts
        self.check_found = check_found
        self.shards: list[TensorParallelShard] = []
        self.forms: list[str] = []

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **attributes: Any,
    ) -> None:
        """Allocate memory for the whole records; they are cut for this process after loading."""
        self._check_columns(input_size)
        self.dtype = params_dtype
        rank = TensorParallelRank(layer.tp_rank, layer.tp_size)
        columns = rank.columns(input_size, input_size_per_partition)
        self.shards = self._shards(layer, columns, list(output_partition_sizes), rank)
        # torch's default device, which vLLM sets to the one that computes this layer
        self.device = torch.empty(0).device
        size = sum(part.bytes for part in self.parts)
        record = nn.Parameter(
            torch.zeros(size, dtype=torch.uint8, device="cpu"), requires_grad=False
        )
        set_weight_attrs(record, {"weight_loader": self._load})
        layer.register_parameter(RECORD, record)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Cut this process's part out of the records, and convert it for the kernels."""
        self.check_found()
        records = layer.get_parameter(RECORD).data.split([part.bytes for part in self.parts])
        for part, record in zip(self.parts, records, strict=True):
            check_record(record, part.for_json(), part.name)
        self.forms = []
        for number, shard in enumerate(self.shards):
            form, laid = self._lay_out(shard, records[shard.part])
            self.forms.append(form)
            layer.register_buffer(f"{LAID}{number}", laid, persistent=False)
        delattr(layer, RECORD)

    def apply(
        self,
        layer: Any,
        x: Float[Tensor, "*batch columns"],
        bias: Float[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "*batch rows"]:
        laid = [getattr(layer, f"{LAID}{number}") for number in range(len(self.shards))]
        rows = [len(shard.rows) for shard in self.shards]
        return fused_linear(x, laid, self.forms, rows, bias)

    def _check_columns(self, input_size: int) -> None:
        """Raise NearplaneError unless all records have as many columns as the layer has inputs."""
        for part in self.parts:
            if part.columns != input_size:
                raise NearplaneError(
                    f"{part.name} is compressed with {part.columns} columns, "
                    f"where vLLM's layer has {input_size} inputs"
                )

    def _shards(
        self, layer: Any, columns: range, held_rows: list[int], rank: TensorParallelRank
    ) -> list[TensorParallelShard]:
        """Return the rows and columns that this process holds of every record."""
        whole_rows = list(getattr(layer, "output_sizes", held_rows))
        return shards_of(self.parts, columns, held_rows, whole_rows, rank)

    def _load(self, param: nn.Parameter, record: Tensor, shard_id: str | int | None = None) -> None:
        """Copy one record into the parameter of all; vLLM calls this for every record it reads."""
        number = SHARD_IDS.get(shard_id, -1) if isinstance(shard_id, str) else shard_id or 0
        if not isinstance(number, int) or not 0 <= number < len(self.parts):
            raise NearplaneError(f"vLLM has no part {shard_id!r} of {self.parts[0].name}")
        part = self.parts[number]
        if list(record.shape) != [part.bytes] or record.dtype != torch.uint8:
            raise NearplaneError(
                f"{part.name}: the record has shape {list(record.shape)} of {record.dtype}, "
                f"where config.json says {part.bytes} bytes"
            )
        before = sum(earlier.bytes for earlier in self.parts[:number])
        param.data[before : before + part.bytes].copy_(record)

    def _lay_out(
        self, shard: TensorParallelShard, record: UInt8[Tensor, " bytes"]
    ) -> tuple[str, UInt8[Tensor, " resident"]]:
        """Return the name of the form that the kernels multiply by, and the bytes in that form."""
        try:
            # without the copy, a view would keep the memory of all records of the layer
            part = shard.cut(record).clone().to(self.device)
            return resident.lay_out(part, len(shard.rows), len(shard.columns))
        except CorruptError as error:
            raise NearplaneError(f"{self.parts[shard.part].name}: {error}") from error


class NearplaneHeadMethod(NearplaneLinearMethod):
    """Multiplies by the output head (lm_head), to whose vocabulary vLLM adds rows of padding."""

    def apply(
        self,
        layer: Any,
        x: Float[Tensor, "*batch columns"],
        bias: Float[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "*batch padded_rows"]:
        padded = layer.num_embeddings_per_partition
        held = sum(len(shard.rows) for shard in self.shards)
        if not held:
            return x.new_zeros((*x.shape[:-1], padded))
        logits = super().apply(layer, x, None if bias is None else bias[:held])
        return F.pad(logits, (0, padded - held))

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
        raise NearplaneError(
            f"{self.parts[0].name} is compressed, but config.json ties it to another tensor: "
            "it must say tie_word_embeddings = false"
        )

    def _shards(
        self, layer: Any, columns: range, held_rows: list[int], rank: TensorParallelRank
    ) -> list[TensorParallelShard]:
        entry, indices = self.parts[0], layer.shard_indices
        if entry.rows != layer.org_vocab_size:
            raise NearplaneError(
                f"{entry.name} is compressed with {entry.rows} rows, where vLLM's vocabulary "
                f"has {layer.org_vocab_size}"
            )
        rows = range(indices.org_vocab_start_index, indices.org_vocab_end_index)
        return [TensorParallelShard(0, rows, columns)] if len(rows) else []


class NearplaneEmbeddingMethod(NearplaneHeadMethod):
    """Looks tokens up in the embedding, whose record may be the output head's, too."""

    def embedding(
        self, layer: Any, input_: Int64[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch columns"]:
        """Return the rows of some tokens; vLLM asks every process only for those that it holds."""
        if not self.shards:
            return torch.zeros(
                (*input_.shape, self.parts[0].columns), dtype=self.dtype, device=input_.device
            )
        shape = len(self.shards[0].rows), len(self.shards[0].columns)
        laid = getattr(layer, f"{LAID}0")
        # tokens of padding have no row, and vLLM discards what they give
        held = input_.clamp(max=shape[0] - 1)
        return look_up(held, laid, self.forms[0], shape, self.dtype)


class NearplaneTiedHeadMethod(QuantizeMethodBase):
    """Multiplies by the record of the embedding, which the output head shares."""

    def create_weights(self, layer: nn.Module, *_: Any, **attributes: Any) -> None:
        """Allocate nothing: the embedding holds the record."""

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
        # in a tuple, so that it is no part of the head: its weights are loaded once
        layer.shared = (embed_tokens,)
        return layer

    def apply(
        self,
        layer: Any,
        x: Float[Tensor, "*batch columns"],
        bias: Float[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "*batch padded_rows"]:
        embedding = layer.shared[0]
        return embedding.quant_method.apply(embedding, x, bias)

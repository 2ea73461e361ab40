"""The records of one of vLLM's layers: allocated, loaded, cut for this process, multiplied.

| theirs | ours |
|---|---|
| shard id | which part of a fused layer a tensor of the checkpoint is |
| process_weights_after_loading | records are checked, cut and laid out, then dropped |
| padded vocabulary | rows below the head's matrix whose outputs are zero |
"""

# pyright: reportMissingImports=false

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearMethodBase
from vllm.model_executor.utils import set_weight_attrs

from nearplane.codes import CorruptError, resident
from nearplane.export import checkpoint_format as fmt
from nearplane.export.record_check import check_record
from nearplane.export.vllm.product import fused_linear
from nearplane.export.vllm.shards import Place, Shard, Stored, shards_of
from nearplane.types import NearplaneError

if TYPE_CHECKING:
    from nearplane.export.vllm.config import NearplaneConfig

RECORD = fmt.RECORD.removeprefix(".")
LAID = "laid_"  # and a number: what the kernels multiply by
SHARD_IDS = {"q": 0, "k": 1, "v": 2}


class NearplaneLinearMethod(LinearMethodBase):
    """Multiplies by the records of one layer, or of several that vLLM computes as one."""

    # records are loaded and cut in the memory of the host, whatever multiplies by them
    requires_device_loading = False

    def __init__(self, config: "NearplaneConfig", parts: list[Stored]):
        self.config = config
        self.parts = parts
        self.shards: list[Shard] = []
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
        """Make room for the whole records, whatever is cut of them later."""
        self._check_columns(input_size)
        place = Place(layer.tp_rank, layer.tp_size)
        columns = place.columns(input_size, input_size_per_partition)
        self.shards = self._shards(layer, columns, list(output_partition_sizes), place)
        # what the layer is made on; its outputs are computed there
        self.device = torch.empty(0).device
        size = sum(part.bytes for part in self.parts)
        record = nn.Parameter(
            torch.zeros(size, dtype=torch.uint8, device="cpu"), requires_grad=False
        )
        set_weight_attrs(record, {"weight_loader": self._load})
        layer.register_parameter(RECORD, record)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Put this process's share of the records into the form that kernels multiply by."""
        self.config.check_found()
        records = layer.get_parameter(RECORD).data.split([part.bytes for part in self.parts])
        for part, record in zip(self.parts, records, strict=True):
            check_record(record, part.entry, part.name)
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
        for part in self.parts:
            if part.columns != input_size:
                raise NearplaneError(
                    f"{part.name} is compressed with {part.columns} columns, "
                    f"where vLLM's layer has {input_size} inputs"
                )

    def _shards(
        self, layer: Any, columns: range, held_rows: list[int], place: Place
    ) -> list[Shard]:
        whole_rows = list(getattr(layer, "output_sizes", held_rows))
        return shards_of(self.parts, columns, held_rows, whole_rows, place)

    def _load(self, param: nn.Parameter, record: Tensor, shard_id: str | int | None = None) -> None:
        """Put one layer's record in its place; vLLM calls this for every record it reads."""
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
        self, shard: Shard, record: UInt8[Tensor, " bytes"]
    ) -> tuple[str, UInt8[Tensor, " resident"]]:
        try:
            # a copy of its own: the parameter that `record` is a part of will be freed
            own = shard.cut(record).clone().to(self.device)
            return resident.lay_out(own, len(shard.rows), len(shard.columns))
        except CorruptError as error:
            raise NearplaneError(f"{self.parts[shard.part].name}: {error}") from error


class NearplaneHeadMethod(NearplaneLinearMethod):
    """The output head, whose rows are the vocabulary and some more that vLLM adds to its end."""

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
        self, layer: Any, columns: range, held_rows: list[int], place: Place
    ) -> list[Shard]:
        stored, indices = self.parts[0], layer.shard_indices
        if stored.rows != layer.org_vocab_size:
            raise NearplaneError(
                f"{stored.name} is compressed with {stored.rows} rows, where vLLM's vocabulary "
                f"has {layer.org_vocab_size}"
            )
        rows = range(indices.org_vocab_start_index, indices.org_vocab_end_index)
        return [Shard(0, rows, columns)] if len(rows) else []

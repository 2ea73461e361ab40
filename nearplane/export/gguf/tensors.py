"""The tensors of a checkpoint under llama.cpp's names, each in a type that holds it exactly."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, TensorNameMap, get_tensor_name_map
from torch import Tensor

from nearplane import codes
from nearplane.export import checkpoint_format as fmt
from nearplane.export.checkpoint_reader import Checkpoint
from nearplane.export.formats.linear_layers import check_plain
from nearplane.export.gguf.architecture import Architecture, rotation_factors
from nearplane.export.gguf.blocks import BLOCK_TYPES, BlockType
from nearplane.types import NearplaneError

SUFFIXES = (".weight", ".bias")
ROTATED = re.compile(r"\.attn_([qk])\.(weight|bias)$")
EXPERT = re.compile(r"(\.experts)\.(\d+)(?=\.)")
ROUTER = ".ffn_gate_inp.weight"  # in float32, whatever the model is stored in
UNQUANTIZED = {
    torch.float32: GGMLQuantizationType.F32,
    torch.float16: GGMLQuantizationType.F16,
    torch.bfloat16: GGMLQuantizationType.BF16,
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a GGUF file.

    - `name`: llama.cpp's. `sources`: of the checkpoint's layers, several for the experts of a
      block, or its tensor; none for a computed one.
    - `shape`: rows first. `block`: its type if it is quantized, else `kind` alone counts.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    block: BlockType | None = None


@dataclass(frozen=True)
class TensorReader:
    """Reads a checkpoint's tensors as a GGUF file holds them, one at a time."""

    checkpoint: Checkpoint
    config: Any
    architecture: Architecture

    def stored(self) -> Iterator[StoredTensor]:
        """Yield all tensors; NearplaneError for one that no type holds exactly, or of no name."""
        factors = rotation_factors(self.config)
        if factors is not None:
            shape = tuple(factors.shape)
            yield StoredTensor("rope_freqs.weight", (), shape, GGMLQuantizationType.F32)
        for name in self.checkpoint.file_of:
            if name.endswith(fmt.RECORD):
                continue
            tensor = self.checkpoint.tensor(name)
            found = self.name_of(name)
            wide = tensor.ndim < 2 or found.endswith(ROUTER)
            kind = UNQUANTIZED[torch.float32 if wide else tensor.dtype]
            shape = tuple(tensor.T.shape if self.is_turned(name, tensor) else tensor.shape)
            yield StoredTensor(found, (name,), shape, kind)
        together: dict[str, list[str]] = {}
        for layer in self.checkpoint.layers:
            together.setdefault(self.name_of(EXPERT.sub(r"\1", layer) + ".weight"), []).append(
                layer
            )
        for name, layers in together.items():
            yield self.quantized(name, sorted(layers, key=number_of))

    def quantized(self, name: str, layers: list[str]) -> StoredTensor:
        """Return the tensor of a layer, or of a block's experts, in a type that holds all."""
        shapes, blocks = [], []
        for layer in layers:
            held = codes.unpack(self.checkpoint.record(layer))
            shapes.append(tuple(held.code.shape))
            blocks.append(smallest_type(held, layer))
        if len(set(shapes)) > 1:
            raise NearplaneError(f"{layers[0]} has another shape than the block's other experts")
        shape = shapes[0] if len(layers) == 1 else (len(layers), *shapes[0])
        found = [block for block in blocks if block is not None]
        if len(found) < len(blocks):
            return StoredTensor(name, tuple(layers), shape, GGMLQuantizationType.F32)
        widest = max(found, key=BLOCK_TYPES.index)
        return StoredTensor(name, tuple(layers), shape, widest.ggml, widest)

    @cached_property
    def names(self) -> TensorNameMap:
        """llama.cpp's names of all tensors of the architecture."""
        return get_tensor_name_map(self.architecture.arch, self.config.num_hidden_layers)

    def name_of(self, name: str) -> str:
        """Return llama.cpp's name of a tensor; NearplaneError if its architecture has none."""
        found = self.names.get_name(name, try_suffixes=SUFFIXES)
        if found is None:
            raise NearplaneError(f"llama.cpp has no name for the tensor {name} of this family")
        return found

    def data(self, stored: StoredTensor) -> np.ndarray:
        """Return the numbers or the bytes of one tensor."""
        if not stored.sources:
            factors = rotation_factors(self.config)
            assert factors is not None
            return factors.numpy()
        if stored.sources[0] not in self.checkpoint.layers:
            return self.unquantized(stored)
        parts = [self.layer(stored, layer) for layer in stored.sources]
        return parts[0] if len(parts) == 1 else np.stack(parts)

    def layer(self, stored: StoredTensor, layer: str) -> np.ndarray:
        """Return the numbers or the bytes of one layer, in the type of the tensor."""
        held = codes.unpack(self.checkpoint.record(layer))
        order = self.order_of(stored, len(held.code))
        if stored.block is None:
            return held.value()[order].float().numpy()
        group = stored.block.grid.group
        parts = [wide_steps(held, part) for part in (held.step, held.minimum) if part is not None]
        every = [part.expand(len(order), -1)[order, ::group].float().numpy() for part in parts]
        return stored.block.packed(held.code[order].numpy(), *every)

    def unquantized(self, stored: StoredTensor) -> np.ndarray:
        """Return the numbers of a tensor that is not compressed, or its bytes if of bfloat16."""
        (source,) = stored.sources
        tensor = self.checkpoint.tensor(source)
        tensor = tensor.T if self.is_turned(source, tensor) else tensor
        tensor = tensor[self.order_of(stored, len(tensor))].contiguous()
        if source.endswith("norm.weight"):
            tensor = tensor.float() + self.architecture.norm_offset
        if stored.kind == GGMLQuantizationType.F32:
            return tensor.float().numpy()
        bfloat16 = stored.kind == GGMLQuantizationType.BF16
        return tensor.view(torch.uint8).numpy() if bfloat16 else tensor.numpy()

    def is_turned(self, name: str, tensor: Tensor) -> bool:
        """Whether a weight is stored as (in, out), as GPT-2's are, unless it is a record."""
        turned = self.architecture.arch == MODEL_ARCH.GPT2
        return turned and tensor.ndim == 2 and name.split(".")[-2].startswith("c_")

    def order_of(self, stored: StoredTensor, count: int) -> Tensor:
        """Return the rows in the order that llama.cpp multiplies them in."""
        rows = torch.arange(count)
        found = ROTATED.search(stored.name)
        if found is None or not self.architecture.permuted:
            return rows
        queries = found[1] == "q"
        heads = self.config.num_attention_heads if queries else self.config.num_key_value_heads
        return rows.view(heads, 2, -1).transpose(1, 2).reshape(-1)


def number_of(layer: str) -> int:
    """Return the number of an expert, 0 for another layer."""
    found = EXPERT.search(layer)
    return int(found[2]) if found else 0


def wide_steps(held: codes.Unpacked, step: Tensor) -> Tensor:
    """Return the step or the minimum of every column, of each row or of all."""
    columns = held.code.shape[1]
    if step.shape[1] > 1:
        step = step.repeat_interleave(held.group_size, dim=1)
    return step.expand(-1, columns) if step.shape[1] == 1 else step[:, :columns]


def smallest_type(held: codes.Unpacked, layer: str) -> BlockType | None:
    """Return the smallest type that holds a layer; None for float32, where 32 divides no row.

    Raises NearplaneError if there is none.
    """
    refusal = f"{layer} cannot be written to GGUF: "
    check_plain(held, refusal, "hptq, gptq or rtn")
    columns, (low, high) = held.code.shape[1], (int(held.code.min()), int(held.code.max()))
    grouped, code = held.group_size if held.step.shape[1] > 1 else 0, held.code.numpy()
    parts = [wide_steps(held, part) for part in (held.step, held.minimum) if part is not None]
    for block in BLOCK_TYPES:
        group = block.grid.group
        if columns % block.columns or grouped % group:
            continue
        if not block.holds(code, held.minimum is not None):
            continue
        if block.factors(*(part[:, ::group].float().numpy() for part in parts)) is not None:
            return block
    if columns % 32 and grouped % 32 == 0:
        return None
    if grouped % 32:
        raise NearplaneError(
            f"{refusal}groups of {grouped} columns have no place there; quantize with "
            "--group-size 32 or a multiple of it, or for GGUF (--for gguf)"
        )
    if -128 <= low <= high <= 127:
        raise NearplaneError(
            f"{refusal}its steps are no numbers of float16: leave the layer as it is (--skip "
            f"{layer.rpartition('.')[2]})"
        )
    raise NearplaneError(
        f"{refusal}its integers reach from {low} to {high}, and the widest type holds -128 to "
        "127; quantize with fewer bits"
    )

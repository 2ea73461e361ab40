"""compressed-tensors: packed integers and the steps of groups or rows, for vLLM and transformers.

| here | there |
|---|---|
| code | `weight_packed`: code + 2^(bits−1), of `bits` bits, dense along a row, in 32-bit words |
| step | `weight_scale`: (rows, groups), or (rows, 1) for one step a row |

Readers multiply in the type of the scale: it is float32 for models of float32, else of 16 bits.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from nearplane import codes
from nearplane.export import checkpoint_format as fmt
from nearplane.export.checkpoint_reader import Checkpoint
from nearplane.export.formats.format import Format, Says
from nearplane.export.formats.linear_layers import (
    FEWEST,
    bits_of,
    check_linear,
    group_size_of,
    write_tensors,
)

WORD = 32  # bits
SCALES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Scheme:
    """What layers of one `config_groups` entry have in common; no group size is one step a row."""

    group_size: int | None
    bits: int = FEWEST

    def for_json(self, targets: list[str]) -> dict[str, Any]:
        """Return the entry of `config_groups`."""
        weights: dict[str, Any] = {"num_bits": self.bits, "type": "int", "symmetric": True}
        weights |= {"strategy": "channel" if self.group_size is None else "group"}
        weights |= {"group_size": self.group_size, "dynamic": False, "actorder": None}
        return {"targets": targets, "weights": weights, "input_activations": None}


class CompressedTensors(Format):
    """value = step · code in `pack-quantized`, 2 to 8 bits, steps of groups or rows.

    All layers whose steps have one form get the width of the largest integer: vLLM multiplies by
    several of them at once.
    """

    name = "compressed-tensors"
    title = "integers and steps as they are, packed: vLLM, SGLang, transformers"
    holds = "rtn, gptq, hptq and hrtn of 2 to 8 bits; embeddings and experts uncompressed"

    def check(self, checkpoint: Checkpoint) -> None:
        check_linear(checkpoint, self.name)

    def write(self, checkpoint: Checkpoint, out: Path, trust_remote_code: bool, says: Says) -> None:
        schemes, wide = schemes_of(checkpoint), checkpoint.stored_dtype() == torch.float32
        write_tensors(
            checkpoint, out, lambda layer, held: parts_of(held, schemes[layer].bits, wide)
        )
        config = checkpoint.config | {"quantization_config": config_of(checkpoint, schemes)}
        (out / fmt.CONFIG).write_bytes(fmt.json_bytes(config))
        widths = sorted({scheme.bits for scheme in schemes.values()})
        says(f"{len(schemes)} layers of {' and '.join(map(str, widths))} bits")


def schemes_of(checkpoint: Checkpoint) -> dict[str, Scheme]:
    """Return the scheme of every layer; NearplaneError for one that has none."""
    sizes, widest = {}, defaultdict(lambda: FEWEST)
    for layer in checkpoint.layers:
        held = codes.unpack(checkpoint.record(layer))
        sizes[layer] = group_size_of(held, layer, CompressedTensors.name)
        bits = bits_of(held, layer, CompressedTensors.name)
        widest[sizes[layer]] = max(widest[sizes[layer]], bits)
    return {layer: Scheme(size, widest[size]) for layer, size in sizes.items()}


def parts_of(held: codes.Unpacked, bits: int, wide: bool) -> dict[str, Tensor]:
    """Return the tensors of a layer.

    - `wide`: whether steps are stored in float32; they are, too, where 16 bits do not hold them.
    """
    step = held.step.float().expand(len(held.code), -1)
    short = [] if wide else [each for each in SCALES if step.to(each).float().equal(step)]
    dtype = short[0] if short else torch.float32
    return {
        "weight_packed": packed(held.code, bits),
        "weight_scale": step.to(dtype).contiguous(),
        "weight_shape": torch.tensor(held.code.shape),
    }


def packed(code: Int32[Tensor, "rows columns"], bits: int) -> Int32[Tensor, "rows words"]:
    """Return code + 2^(bits−1) in `bits` bits each, the lowest first, rows padded to words."""
    raised = (code.numpy() + (1 << bits - 1)).astype(np.uint8)
    stream = np.unpackbits(raised[:, :, None], axis=2, count=bits, bitorder="little")
    stream = stream.reshape(len(raised), -1)
    stream = np.pad(stream, ((0, 0), (0, -stream.shape[1] % WORD)))
    words = np.packbits(stream, axis=1, bitorder="little").view("<i4")
    return torch.from_numpy(words.astype(np.int32))


def config_of(checkpoint: Checkpoint, schemes: dict[str, Scheme]) -> dict[str, Any]:
    """Return the `quantization_config`: all layers, or each group's by name."""
    together: dict[Scheme, list[str]] = defaultdict(list)
    for layer, scheme in schemes.items():
        together[scheme].append(layer)
    one = len(together) == 1
    groups = {
        f"group_{number}": scheme.for_json(["Linear"] if one else layers)
        for number, (scheme, layers) in enumerate(together.items())
    }
    weights = [name for name in checkpoint.file_of if name.endswith(".weight")]
    others = [n.removesuffix(".weight") for n in weights if checkpoint.tensor(n).ndim == 2]
    head = [] if "lm_head" in schemes else ["lm_head"]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted({*others, *head}),
        "kv_cache_scheme": None,
    }

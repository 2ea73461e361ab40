"""GPTQ checkpoints of 4 or 8 bits, as GPTQModel, vLLM, SGLang and transformers read them.

| here | there |
|---|---|
| code (rows, columns) | `qweight` (columns · bits / 32, rows): code + 2^(bits−1), by columns |
| step (rows, groups) | `scales` (groups, rows) in float16 |
| 0 | `qzeros` (groups, rows · bits / 32): 2^(bits−1), less 1 in version 1 |
| column // group_size | `g_idx` (columns) |
"""

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
    bits_of,
    check_linear,
    group_size_of,
    write_tensors,
)
from nearplane.types import NearplaneError

WORD = 32  # bits
WIDTHS = (4, 8)  # that every reader takes


class Gptq(Format):
    """value = scales · (qweight − qzeros) in 4 or 8 bits, steps of groups or rows in float16.

    All layers have one width and one size of groups.
    """

    name = "gptq"
    title = "integers and steps as they are, GPTQ version 1: GPTQModel, vLLM, SGLang, transformers"
    holds = (
        "rtn, gptq, hptq and hrtn of up to 8 bits in 4 or 8; embeddings and experts uncompressed"
    )
    stored_zero = -1  # what is added to a zero point before it is stored

    def check(self, checkpoint: Checkpoint) -> None:
        check_linear(checkpoint, self.name)

    def write(self, checkpoint: Checkpoint, out: Path, trust_remote_code: bool, says: Says) -> None:
        bits, group_size = common_form(checkpoint, self.name)

        def parts(layer: str, held: codes.Unpacked) -> dict[str, Tensor]:
            zero = (1 << bits - 1) + self.stored_zero
            return parts_of(held, bits, group_size or held.code.shape[1], zero)

        write_tensors(checkpoint, out, parts)
        settings = self.settings(checkpoint, bits, group_size or -1)
        config = checkpoint.config | {"quantization_config": settings}
        (out / fmt.CONFIG).write_bytes(fmt.json_bytes(config))
        # older readers look for it
        (out / "quantize_config.json").write_bytes(fmt.json_bytes(settings))
        says(f"{len(checkpoint.layers)} layers of {bits} bits")

    def settings(self, checkpoint: Checkpoint, bits: int, group_size: int) -> dict[str, Any]:
        """Return the `quantization_config`; `dynamic` names layers that are not compressed."""
        weights = [n for n in checkpoint.file_of if n.endswith(".weight") and ".layers." in n]
        kept = [n.removesuffix(".weight") for n in weights if checkpoint.tensor(n).ndim == 2]
        dynamic = {f"-:^{name.replace('.', chr(92) + '.')}$": {} for name in sorted(kept)}
        return {
            "quant_method": "gptq",
            "checkpoint_format": self.name,
            "bits": bits,
            "group_size": group_size,
            "sym": True,
            "desc_act": False,
            "lm_head": "lm_head" in checkpoint.layers,
            "pack_dtype": "int32",
        } | ({"dynamic": dynamic} if dynamic else {})


class GptqV2(Gptq):
    """The same with zero points as they are: what GPTQModel calls `gptq_v2`."""

    name = "gptq_v2"
    title = "the same, GPTQ version 2: GPTQModel, vLLM"
    stored_zero = 0


def common_form(checkpoint: Checkpoint, where: str) -> tuple[int, int | None]:
    """Return the bits and the columns of a group of all layers; None is one step a row.

    Raises NearplaneError if they differ, or if readers do not take them.
    """
    sizes: dict[int | None, str] = {}
    whole: dict[int, str] = {}  # of layers with one group a row
    widest = min(WIDTHS)
    for layer in checkpoint.layers:
        held = codes.unpack(checkpoint.record(layer))
        size, bits = group_size_of(held, layer, where), bits_of(held, layer, where)
        columns = held.code.shape[1]
        if size in (None, columns):
            whole.setdefault(columns, layer)
        else:
            sizes.setdefault(size, layer)
        widest = max(widest, bits)
        check_shape(held, layer, where)
    size = next(iter(sizes), None)
    others = [layer for n, layer in (whole | sizes).items() if size not in (None, n)]
    if others:
        raise NearplaneError(
            f"{sizes[size]} and {others[0]} have groups of different sizes, {where} has one for "
            "all; quantize with another --group-size"
        )
    bits = next(width for width in WIDTHS if width >= widest)
    return bits, size


def check_shape(held: codes.Unpacked, layer: str, where: str) -> None:
    """Raise NearplaneError unless words hold whole integers and float16 the steps."""
    rows, columns = held.code.shape
    if rows % 8 or columns % 8:
        raise NearplaneError(
            f"{layer} cannot be written as {where}: 8 does not divide its shape, {rows} x "
            f"{columns}; quantize with --skip {layer.rpartition('.')[2]}"
        )
    if not held.step.half().float().equal(held.step.float()):
        raise NearplaneError(
            f"{layer} cannot be written as {where}: its steps are no numbers of float16"
        )


def parts_of(held: codes.Unpacked, bits: int, group_size: int, zero: int) -> dict[str, Tensor]:
    """Return the tensors of a layer, with what is stored for its zero points."""
    rows, columns = held.code.shape
    step = held.step.expand(rows, -1)
    raised = (held.code + (1 << bits - 1)).T
    return {
        "qweight": packed(raised, bits),
        "qzeros": packed(
            torch.full((rows, step.shape[1]), zero, dtype=torch.int32), bits
        ).T.contiguous(),
        "scales": step.T.half().contiguous(),
        "g_idx": torch.arange(columns, dtype=torch.int32) // group_size,
    }


def packed(code: Int32[Tensor, "n m"], bits: int) -> Int32[Tensor, "words m"]:
    """Return words along the first axis of integers ≥ 0 of `bits` bits, the lowest first."""
    parts = code.numpy().astype(np.uint32).reshape(-1, WORD // bits, code.shape[1])
    shifts = np.arange(0, WORD, bits, dtype=np.uint32)[None, :, None]
    return torch.from_numpy(np.bitwise_or.reduce(parts << shifts, axis=1).view(np.int32))

"""Shared by formats that hold plain linear layers: integers of a few bits, steps of groups or rows.

What they do not hold is refused with the format's name, `where` below.
"""

import re
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from nearplane import codes
from nearplane.codes.dense import signed_width
from nearplane.export import checkpoint_format as fmt
from nearplane.export.checkpoint_reader import Checkpoint
from nearplane.export.output_directory import check_space
from nearplane.export.shard_file import ShardWriter
from nearplane.types import NearplaneError

FEWEST, MOST = 2, 8  # bits
EXPERT = re.compile(r"\.experts\.\d+\.")
TURNED = ("gpt2", "openai-gpt")  # whose layers are no nn.Linear


def check_linear(checkpoint: Checkpoint, where: str) -> None:
    """Raise NearplaneError if a compressed layer is no nn.Linear of its own."""
    family = checkpoint.config.get("model_type")
    if family in TURNED:
        raise NearplaneError(f"{where} holds nn.Linear layers, which {family} lacks")
    for layer in checkpoint.layers:
        if EXPERT.search(layer):
            raise NearplaneError(
                f"{layer} cannot be written as {where}: experts are fused there; quantize with "
                "--skip experts"
            )
        if "embed" in layer.rpartition(".")[2] or layer.endswith(".wte"):
            raise NearplaneError(
                f"{layer} cannot be written as {where}, which holds linear layers; quantize with "
                "--keep embedding"
            )


def check_plain(held: codes.Unpacked, refusal: str, methods: str) -> None:
    """Raise NearplaneError, which begins with `refusal`, for steps of columns and for outliers.

    - `methods`: those that have neither.
    """
    if held.row_step is not None or held.step.shape[1] == held.code.shape[1] > 1:
        raise NearplaneError(
            f"{refusal}a step of every column has no place there; quantize with --method {methods}"
        )
    if held.outliers is not None and len(held.outliers.value):
        raise NearplaneError(
            f"{refusal}outliers have no place there; quantize with --method {methods}"
        )


def group_size_of(held: codes.Unpacked, layer: str, where: str) -> int | None:
    """Return the columns that share a step, None for all; NearplaneError for other steps."""
    refusal, columns = f"{layer} cannot be written as {where}: ", held.code.shape[1]
    check_plain(held, refusal, "gptq, rtn or hptq")
    if held.minimum is not None:
        raise NearplaneError(
            f"{refusal}minima of groups have no place there; quantize with --method gptq, or of "
            "GGUF types without them"
        )
    if held.step.shape[1] == 1:
        return None
    if columns % held.group_size:
        raise NearplaneError(
            f"{refusal}groups of {held.group_size} do not divide its {columns} columns; quantize "
            "with another --group-size"
        )
    return held.group_size


def bits_of(held: codes.Unpacked, layer: str, where: str) -> int:
    """Return the bits of a layer's largest integer; NearplaneError if they are more than eight."""
    low, high = int(held.code.min()), int(held.code.max())
    bits = signed_width(low, high)
    if bits > MOST:
        raise NearplaneError(
            f"{layer} cannot be written as {where}: its integers reach from {low} to "
            f"{high}, more than {MOST} bits; quantize with fewer bits"
        )
    return max(bits, FEWEST)


def write_tensors(
    checkpoint: Checkpoint,
    out: Path,
    parts: Callable[[str, codes.Unpacked], dict[str, Tensor]],
) -> None:
    """Write what is not compressed as it is, and the parts of every layer, into one file.

    - `parts`: gives the tensors of a layer by the last part of their names.
    """
    check_space(out, sum(int(entry["bytes"]) for entry in checkpoint.layers.values()))
    writer = ShardWriter(out / fmt.SINGLE)
    try:
        for name in checkpoint.file_of:
            if not name.endswith(fmt.RECORD):
                writer.add(name, checkpoint.tensor(name))
        for layer in checkpoint.layers:
            held = codes.unpack(checkpoint.record(layer))
            for part, tensor in parts(layer, held).items():
                writer.add(f"{layer}.{part}", tensor)
        writer.close({"format": "pt"})
    finally:
        writer.remove()

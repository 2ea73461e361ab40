"""Layers as GPTQModel, AutoRound, AutoAWQ and llm-compressor pack them -> integers and steps.

| theirs | ours |
|---|---|
| `qweight`, `weight_packed`: words of 32 bits, along columns, or along rows for AWQ | code |
| `weight`: integers of 8 bits, in `int-quantized` and `naive-quantized` | code |
| `scales` (groups, rows), `weight_scale` (rows, groups) | step |
| `qzeros`, `weight_zero_point`: an integer a row and group | subtracted from the code |
| `g_idx`, `weight_g_idx`: the group of every column | must be column // group_size |

value = scale · (integer − zero point) = step · code. The bytes may come from an attacker: shapes
are compared before anything is unpacked, and whatever does not fit is a NearplaneError.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from nearplane.types import NearplaneError

WORD = 32  # bits
WIDTHS = range(1, 9)  # bits of an integer
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where integer i of eight is in a word
# formats of compressed-tensors: integers in words, and one a byte
PACKED, BYTES = "pack-quantized", ("int-quantized", "naive-quantized")
FLOATS = (torch.float16, torch.bfloat16, torch.float32)

Parts = Mapping[str, Tensor]  # the tensors of a layer by the last part of their names


@dataclass(frozen=True)
class PackedLayer:
    """value = step · code; the last group may be short."""

    code: Int32[Tensor, "rows columns"]
    step: Tensor
    group_size: int


def gptq_layer(parts: Parts, settings: Mapping[str, Any]) -> PackedLayer:
    """Return what a layer of GPTQModel or AutoRound holds.

    - `settings`: `checkpoint_format` "gptq" stores zero points less one, "gptq_v2" as they are.
    """
    words, zeros, scales = two_sided(parts)
    groups, rows = scales.shape
    bits = width(zeros.shape[1] * WORD, rows)
    stated = settings.get("bits")
    # where rows are fewer than a word holds, its width leaves a choice
    if type(stated) is int and stated in WIDTHS and -(-rows * stated // WORD) == zeros.shape[1]:
        bits = stated
    columns = words.shape[0] * WORD // bits
    require(words.shape == (-(-columns * bits // WORD), rows), "the shape of qweight")
    require(zeros.shape == (groups, -(-rows * bits // WORD)), "the shape of qzeros")
    zero = unpacked(zeros, bits, rows)
    if settings.get("checkpoint_format", "gptq") != "gptq_v2":
        # readers differ in whether the one that is added carries over
        require(int(zero.max()) < 2**bits - 1, "a zero point that 1 cannot be added to")
        zero = zero + 1
    code = unpacked(words.T.contiguous(), bits, columns)
    return layer(code, zero.T, scales.T, settings, parts.get("g_idx"))


def awq_layer(parts: Parts, settings: Mapping[str, Any]) -> PackedLayer:
    """Return what a layer of AutoAWQ holds, in its version "gemm" of 4 bits."""
    version = settings.get("version", "gemm")
    require(str(version).lower() == "gemm", "a version that is not gemm")
    words, zeros, scales = two_sided(parts)
    groups, rows = scales.shape
    columns, bits = words.shape[0], width(words.shape[1] * WORD, rows)
    require(bits == 4, f"its width of {bits} bits, which is not 4,")
    require(words.shape == (columns, rows // 8) and rows % 8 == 0, "the shape of qweight")
    require(zeros.shape == (groups, rows // 8), "the shape of qzeros")
    code, zero = (from_awq(unpacked(each, bits, rows)) for each in (words, zeros))
    return layer(code.T, zero.T, scales.T, settings)


def compressed_tensors_layer(parts: Parts, settings: Mapping[str, Any]) -> PackedLayer:
    """Return what a layer of compressed-tensors holds: packed integers, or such of 8 bits each.

    - `settings`: `num_bits` and `format` of its weights, and the `strategy` of their scales.
    """
    stated = settings.get("num_bits")
    bits = stated if type(stated) is int and stated in WIDTHS else 0
    require(bits > 0, "a width of weights that is not from 1 to 8 bits")
    code = (bytes_of if settings.get("format") in BYTES else unpacked_code)(parts, bits)
    scales = numbers(parts, "weight_scale")
    whole = settings.get("strategy") == "tensor"
    require(scales.shape[0] == (1 if whole else len(code)), "the shape of weight_scale")
    require(not whole or scales.numel() == 1, "the shape of weight_scale")
    symmetric = settings.get("symmetric") is not False
    require(symmetric or "weight_zero_point" in parts, "asymmetric weights without zero points")
    zero = zero_points(parts, bits, tuple(scales.shape))
    return layer(code, zero, scales, settings, parts.get("weight_g_idx"))


def unpacked_code(parts: Parts, bits: int) -> Int32[Tensor, "rows columns"]:
    """Return the integers of `pack-quantized`, from 0 up."""
    words, shape = integers(parts, "weight_packed"), part_of(parts, "weight_shape")
    require(shape.numel() == 2 and shape.dtype in (torch.int64, torch.int32), "weight_shape")
    rows, columns = (int(n) for n in shape.flatten().tolist())
    require(rows > 0 and columns > 0, "weight_shape")
    require(words.shape == (rows, -(-columns * bits // WORD)), "the shape of weight_packed")
    return unpacked(words, bits, columns)


def bytes_of(parts: Parts, bits: int) -> Int32[Tensor, "rows columns"]:
    """Return the integers of `int-quantized` and `naive-quantized`, raised to 0 and up."""
    found = part_of(parts, "weight")
    require(found.dtype == torch.int8 and found.ndim == 2 and bool(found.numel()), "weight")
    code = found.int() + (1 << bits - 1)
    require(int(code.min()) >= 0 and int(code.max()) < 1 << bits, f"more than {bits} bits")
    return code


def zero_points(parts: Parts, bits: int, shape: tuple[int, ...]) -> Int32[Tensor, "rows groups"]:
    """Return the zero points of integers that were raised to 0 and up.

    - `shape`: of the scales.
    """
    name, half = "weight_zero_point", 1 << bits - 1
    if name not in parts:
        return torch.full((1, 1), half, dtype=torch.int32)
    stored = parts[name]
    if stored.dtype == torch.int8:
        require(stored.numel() == math.prod(shape), "the shape of weight_zero_point")
        return stored.reshape(shape).int() + half
    stored = integers(parts, name)
    wanted = (-(-shape[0] * bits // WORD), shape[1])
    require(stored.shape == wanted, "the shape of weight_zero_point")
    return unpacked(stored.T.contiguous(), bits, shape[0]).T


def layer(
    code: Int32[Tensor, "rows columns"],
    zero: Int32[Tensor, "zero_rows zeros"],
    scales: Float[Tensor, "rows groups"],
    settings: Mapping[str, Any],
    groups: Tensor | None = None,
) -> PackedLayer:
    """Return integers less their zero points, and steps.

    - `settings`: `group_size`, which counts where the group of every column is not stored.
    """
    columns, count = code.shape[1], scales.shape[1]
    size = group_size_of(columns, count, settings.get("group_size"), groups)
    require(bool(torch.isfinite(scales).all()), "a scale that is not finite")
    spread = zero.repeat_interleave(size, 1)[:, :columns] if zero.shape[1] > 1 else zero
    return PackedLayer((code - spread).contiguous(), scales.float().contiguous(), size)


def group_size_of(columns: int, count: int, stated: Any, groups: Tensor | None) -> int:
    """Return the columns of a group, of which there are `count`.

    - `stated`: what the configuration says of it. `groups`: the group of every column, or None.
    """
    known = type(stated) is int and stated > 0 and count > 1
    size = min(stated, columns) if known else -(-columns // count)
    if groups is not None and groups.numel():
        require(groups.shape == (columns,), "the shape of its groups' numbers")
        first = groups.long()
        size = int((first == first[0]).sum()) if count > 1 else columns
        expected = torch.arange(columns) // size
        require(
            torch.equal(first, expected),
            "an order of activations with groups of columns that are not neighbours (desc_act)",
        )
    require(-(-columns // size) == count, "the number of its groups")
    return size


def two_sided(parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
    """Return qweight, qzeros and scales; NearplaneError unless they are matrices."""
    words, zeros = integers(parts, "qweight"), integers(parts, "qzeros")
    return words, zeros, numbers(parts, "scales")


def integers(parts: Parts, name: str) -> Tensor:
    """Return a matrix of words."""
    found = part_of(parts, name)
    require(found.dtype == torch.int32 and found.ndim == 2 and bool(found.numel()), name)
    return found


def numbers(parts: Parts, name: str) -> Tensor:
    """Return a matrix of scales; one a row may be a vector, and one alone a number."""
    found = part_of(parts, name)
    require(found.dtype in FLOATS and found.ndim in (0, 1, 2) and bool(found.numel()), name)
    return found if found.ndim == 2 else found.reshape(-1, 1)


def part_of(parts: Parts, name: str) -> Tensor:
    """Return a tensor of a layer; NearplaneError if it is not there."""
    if name not in parts:
        raise NearplaneError(f"there is no {name}")
    return parts[name]


def width(available: int, count: int) -> int:
    """Return the bits of an integer: the most that `count` of them have in so many bits."""
    bits = available // count
    require(bits in WIDTHS, f"a width of {bits} bits")
    return bits


def unpacked(words: Tensor, bits: int, count: int) -> Int32[Tensor, "n count"]:
    """Return the first `count` integers of every row of words, lowest bits first.

    An integer may straddle two words: 32 of them are `bits` words.
    """
    raw = words.contiguous().numpy().view(np.uint32).astype(np.uint64)
    raw = np.pad(raw, ((0, 0), (0, 1)))
    place = np.arange(count) * bits
    word, shift = place // WORD, (place % WORD).astype(np.uint64)
    found = np.empty((raw.shape[0], count), np.int32)
    for row, own in zip(found, raw, strict=True):
        pair = own[word] | own[word + 1] << np.uint64(WORD)
        row[:] = (pair >> shift) & np.uint64((1 << bits) - 1)
    return torch.from_numpy(found)


def from_awq(code: Int32[Tensor, "n m"]) -> Int32[Tensor, "n m"]:
    """Return integers in order, that AutoAWQ's words of eight hold in another one."""
    return code.reshape(len(code), -1, 8)[:, :, list(AWQ_ORDER)].reshape(code.shape)


def require(fits: bool, what: str) -> None:
    """Raise NearplaneError, that names what cannot be read, unless it fits."""
    if not fits:
        raise NearplaneError(f"{what} cannot be imported")


READERS: dict[str, Callable[[Parts, Mapping[str, Any]], PackedLayer]] = {
    "gptq": gptq_layer,
    "auto-round": gptq_layer,
    "awq": awq_layer,
    "compressed-tensors": compressed_tensors_layer,
}
# the tensors of which one tells a packed layer
MARKS = {"gptq": ("qweight",), "auto-round": ("qweight",), "awq": ("qweight",)}
MARKS |= {"compressed-tensors": ("weight_packed", "weight_scale")}
PARTS = (
    *("qweight", "qzeros", "scales", "g_idx"),
    *("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
)

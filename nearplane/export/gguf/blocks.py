"""Integers and their steps -> the bytes of a GGUF tensor: llama.cpp's block types, exactly.

Every type here is filled so that what llama.cpp decodes is step · code, to the bit. A type with a
minimum of every sub-block has it at the lowest code: value = d · q − m, with m = −d · low. Types of
256 columns divide their step into d times a factor of every 16 or 32 columns, which is 1 here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from jaxtyping import Float16, Int, UInt8

Codes = UInt8[np.ndarray, "blocks columns"]
Steps = Float16[np.ndarray, "blocks"]
Bytes = UInt8[np.ndarray, "blocks bytes"]


@dataclass(frozen=True)
class BlockType:
    """A type of blocks that hold integers and one step.

    - `low`, `high`: the integers that it holds. `pack`: codes less `low` and steps -> bytes.
    """

    name: str
    low: int
    high: int
    pack: Callable[[Codes, Steps], Bytes]

    @property
    def ggml(self) -> GGMLQuantizationType:
        return GGMLQuantizationType[self.name]

    @property
    def columns(self) -> int:
        """Columns of a block."""
        return GGML_QUANT_SIZES[self.ggml][0]

    def packed(
        self, code: Int[np.ndarray, "rows columns"], step: Float16[np.ndarray, "rows blocks"]
    ) -> UInt8[np.ndarray, "rows bytes"]:
        """Return the tensor's bytes; `step` has one column for every block."""
        raised = (code.reshape(-1, self.columns) - self.low).astype(np.uint8)
        return self.pack(raised, step.reshape(-1)).reshape(len(code), -1)


def halves(*numbers: Steps) -> Bytes:
    """Return the bytes of 16-bit numbers, side by side."""
    return np.stack(numbers, axis=1).astype("<f2").view(np.uint8)


def nibbles(code: Codes, apart: int) -> Bytes:
    """Return bytes of two 4-bit integers, column j below column j + apart of each 2 · apart."""
    low, high = np.moveaxis((code & 15).reshape(len(code), -1, 2, apart), 2, 0)
    return (low | high << 4).reshape(len(code), -1)


def pairs(code: Codes) -> Bytes:
    """Return bytes of four 2-bit integers, 32 columns apart in each 128."""
    parts = (code & 3).reshape(len(code), -1, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return np.bitwise_or.reduce(parts << shifts, axis=2).reshape(len(code), -1)


def bits(code: Codes, bit: int) -> Bytes:
    """Return one bit of each integer in 32 bytes: columns 32 apart share a byte."""
    parts = (code >> bit & 1).reshape(len(code), -1, 32)
    shifts = np.arange(parts.shape[1], dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(parts << shifts, axis=1)


def row_of(values: list[int], blocks: int) -> Bytes:
    """Return the same bytes for every block."""
    return np.tile(np.array(values, np.uint8), (blocks, 1))


def q8_0(code: Codes, step: Steps) -> Bytes:
    """Return blocks of integers of 8 bits, signed."""
    # an unsigned byte less 128 is a signed one with its highest bit turned
    return np.hstack([halves(step), code ^ 128])


def q4_0(code: Codes, step: Steps) -> Bytes:
    """Return blocks of integers of 4 bits, column j beside column j + 16."""
    return np.hstack([halves(step), nibbles(code, 16)])


def q5_0(code: Codes, step: Steps) -> Bytes:
    """Return blocks of integers of 4 bits, and a fifth apart."""
    fifth = np.packbits(code >> 4 & 1, axis=1, bitorder="little")
    return np.hstack([halves(step), fifth, nibbles(code, 16)])


# eight 6-bit factors, and as many minima, of which each is 1
ONES_6_BITS = [1] * 8 + [1 | 1 << 4] * 4


def q4_k(code: Codes, step: Steps) -> Bytes:
    """Return blocks of integers of 4 bits, with factors and minima of 32 columns."""
    head = halves(step, 8 * step), row_of(ONES_6_BITS, len(code))
    return np.hstack([*head, nibbles(code, 32)])


def q5_k(code: Codes, step: Steps) -> Bytes:
    """Return blocks of integers as Q4_K, and a fifth bit apart."""
    head = halves(step, 16 * step), row_of(ONES_6_BITS, len(code))
    return np.hstack([*head, bits(code, 4), nibbles(code, 32)])


def q6_k(code: Codes, step: Steps) -> Bytes:
    """Return blocks of integers of 4 bits, and two apart, with factors of 16 columns."""
    low = nibbles(code, 64)
    return np.hstack([low, pairs(code >> 4), row_of([1] * 16, len(code)), halves(step)])


def q3_k(code: Codes, step: Steps) -> Bytes:
    """Return blocks of integers of 2 bits, and a third apart, with factors of 16 columns."""
    # factors are stored plus 32: 33 has a low half of 1, and two bits of 2 above it
    factors = row_of([1 | 1 << 4] * 8 + [2 | 2 << 2 | 2 << 4 | 2 << 6] * 4, len(code))
    return np.hstack([bits(code, 2), pairs(code), factors, halves(step)])


def q2_k(code: Codes, step: Steps) -> Bytes:
    """Return blocks of integers of 2 bits, with factors and minima of 16 columns."""
    return np.hstack([row_of([1 | 1 << 4] * 16, len(code)), pairs(code), halves(step, 2 * step)])


# by the bits of a weight; of those with the same, the one that llama.cpp multiplies by faster
BLOCK_TYPES = (
    BlockType("Q2_K", -2, 1, q2_k),
    BlockType("Q3_K", -4, 3, q3_k),
    BlockType("Q4_K", -8, 7, q4_k),
    BlockType("Q4_0", -8, 7, q4_0),
    BlockType("Q5_K", -16, 15, q5_k),
    BlockType("Q5_0", -16, 15, q5_0),
    BlockType("Q6_K", -32, 31, q6_k),
    BlockType("Q8_0", -128, 127, q8_0),
)

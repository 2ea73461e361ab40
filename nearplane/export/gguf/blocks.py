"""Integers and their steps -> the bytes of a GGUF tensor: llama.cpp's block types, exactly.

Every type here is filled so that what llama.cpp decodes is step · code, to the bit. A type with a
minimum of every group has it at the lowest code: value = d · k · q − m · k, m = −d · low. Types
of 256 columns have a number d of float16 for each block, and steps d · k of 16 or 32 columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from jaxtyping import Float16, Float32, Int, UInt8

from nearplane.codes.block_types import GRIDS, LARGEST, BlockGrid

Codes = UInt8[np.ndarray, "blocks columns"]
Factors = Float16[np.ndarray, "blocks"]
Multiples = Int[np.ndarray, "blocks each"]
Bytes = UInt8[np.ndarray, "blocks bytes"]


@dataclass(frozen=True)
class BlockType:
    """A type of blocks, and how its bytes are arranged.

    - `grid`: the integers and steps that it holds. `pack`: codes from 0 up, d and k -> bytes.
    """

    grid: BlockGrid
    pack: Callable[[Codes, Factors, Multiples], Bytes]

    @property
    def ggml(self) -> GGMLQuantizationType:
        return GGMLQuantizationType[self.grid.name]

    @property
    def columns(self) -> int:
        """Columns of a block."""
        return GGML_QUANT_SIZES[self.ggml][0]

    def holds(self, code: Int[np.ndarray, "rows columns"]) -> bool:
        """Whether all integers are levels of the type."""
        low, high = int(code.min()), int(code.max())
        inside = self.grid.low <= low <= high <= self.grid.high
        return inside and (not self.grid.levels or bool(np.isin(code, self.grid.levels).all()))

    def factored(
        self, step: Float32[np.ndarray, "rows groups"]
    ) -> tuple[Factors, Multiples] | None:
        """Return d of every block and k of every group, step = d · k; None if there are none."""
        each = self.columns // self.grid.group
        wide = step.reshape(-1, each)
        largest = np.abs(wide).max(1)
        several = self.grid.signed and self.grid.multiples > 0
        # where a group's step cannot be negative by itself, a block's factor may be
        sign = np.ones(len(wide)) if several else np.sign(wide[:, 0])
        factor = np.zeros(len(wide), np.float16)
        multiple = np.zeros(wide.shape, np.int64)
        open_ = np.arange(len(wide))
        for most in range(1, max(self.grid.multiples, 1) + 1):
            with np.errstate(all="ignore"):
                own = (largest[open_] / np.float32(most) * sign[open_]).astype(np.float16)
                found = np.rint(wide[open_] / own.astype(np.float32)[:, None])
                exact = (own.astype(np.float32)[:, None] * found == wide[open_]).all(1)
            least = -most if several else 1
            exact &= (found >= least).all(1) & (found != 0).all(1) & (np.abs(own) <= LARGEST)
            done = open_[exact]
            factor[done], multiple[done] = own[exact], found[exact].astype(np.int64)
            open_ = open_[~exact]
            if not len(open_):
                return factor, multiple
        return None

    def packed(
        self,
        code: Int[np.ndarray, "rows columns"],
        step: Float32[np.ndarray, "rows groups"],
    ) -> UInt8[np.ndarray, "rows bytes"]:
        """Return the tensor's bytes; ValueError for steps that the type does not hold.

        - `step`: of every group.
        """
        made = self.factored(step)
        if made is None:
            raise ValueError(f"{self.grid.name} does not hold these steps")
        levels = self.grid.levels
        raised = np.searchsorted(levels, code) if levels else code - self.grid.low
        blocks = raised.reshape(-1, self.columns).astype(np.uint8)
        return self.pack(blocks, *made).reshape(len(code), -1)


def halves(*numbers: Factors) -> Bytes:
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


def six_bits(multiple: Multiples) -> Bytes:
    """Return eight factors of 6 bits, and as many minima that are the same numbers."""
    low, high = np.split(multiple.astype(np.uint8), 2, axis=1)
    first = low | high >> 4 << 6
    return np.hstack([first, first, high & 15 | (high & 15) << 4])


def q8_0(code: Codes, factor: Factors, _: Multiples) -> Bytes:
    """Return blocks of integers of 8 bits, signed."""
    # an unsigned byte less 128 is a signed one with its highest bit turned
    return np.hstack([halves(factor), code ^ 128])


def q4_0(code: Codes, factor: Factors, _: Multiples) -> Bytes:
    """Return blocks of integers of 4 bits, column j beside column j + 16."""
    return np.hstack([halves(factor), nibbles(code, 16)])


def q5_0(code: Codes, factor: Factors, _: Multiples) -> Bytes:
    """Return blocks of integers of 4 bits, and a fifth apart."""
    fifth = np.packbits(code >> 4 & 1, axis=1, bitorder="little")
    return np.hstack([halves(factor), fifth, nibbles(code, 16)])


def q4_k(code: Codes, factor: Factors, multiple: Multiples) -> Bytes:
    """Return blocks of integers of 4 bits, with factors and minima of 32 columns."""
    return np.hstack([halves(factor, 8 * factor), six_bits(multiple), nibbles(code, 32)])


def q5_k(code: Codes, factor: Factors, multiple: Multiples) -> Bytes:
    """Return blocks of integers as Q4_K, and a fifth bit apart."""
    head = halves(factor, 16 * factor), six_bits(multiple)
    return np.hstack([*head, bits(code, 4), nibbles(code, 32)])


def q6_k(code: Codes, factor: Factors, multiple: Multiples) -> Bytes:
    """Return blocks of integers of 4 bits, and two apart, with factors of 16 columns."""
    factors = multiple.astype(np.int8).view(np.uint8)
    return np.hstack([nibbles(code, 64), pairs(code >> 4), factors, halves(factor)])


def q3_k(code: Codes, factor: Factors, multiple: Multiples) -> Bytes:
    """Return blocks of integers of 2 bits, and a third apart, with factors of 16 columns."""
    raised = (multiple + 32).astype(np.uint8)
    # the low halves of groups j and j + 8 side by side; the two bits above, 4 groups apart
    low = raised[:, :8] & 15 | (raised[:, 8:] & 15) << 4
    above = (raised >> 4).reshape(-1, 4, 4)
    high = np.bitwise_or.reduce(above << np.array([0, 2, 4, 6], np.uint8)[:, None], axis=1)
    return np.hstack([bits(code, 2), pairs(code), low, high, halves(factor)])


def q2_k(code: Codes, factor: Factors, multiple: Multiples) -> Bytes:
    """Return blocks of integers of 2 bits, with factors and minima of 16 columns."""
    four = multiple.astype(np.uint8)
    return np.hstack([four | four << 4, pairs(code), halves(factor, 2 * factor)])


def iq4_xs(code: Codes, factor: Factors, multiple: Multiples) -> Bytes:
    """Return blocks of numbers of levels, with factors of 32 columns in 4 and 2 bits."""
    raised = (multiple + 32).astype(np.uint16)
    shifts = 2 * np.arange(8, dtype=np.uint16)
    above = np.bitwise_or.reduce((raised >> 4) << shifts, axis=1).astype("<u2")
    low = (raised[:, ::2] & 15 | (raised[:, 1::2] & 15) << 4).astype(np.uint8)
    head = halves(factor), above[:, None].view(np.uint8), low
    return np.hstack([*head, nibbles(code, 16)])


# by the bits of a weight; of those with the same, the one that llama.cpp multiplies by faster
BLOCK_TYPES = (
    BlockType(GRIDS["Q2_K"], q2_k),
    BlockType(GRIDS["Q3_K"], q3_k),
    BlockType(GRIDS["IQ4_XS"], iq4_xs),
    BlockType(GRIDS["Q4_K"], q4_k),
    BlockType(GRIDS["Q4_0"], q4_0),
    BlockType(GRIDS["IQ4_NL"], q4_0),
    BlockType(GRIDS["Q5_K"], q5_k),
    BlockType(GRIDS["Q5_0"], q5_0),
    BlockType(GRIDS["Q6_K"], q6_k),
    BlockType(GRIDS["Q8_0"], q8_0),
)

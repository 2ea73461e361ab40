"""Integers and their steps -> the bytes of a GGUF tensor: llama.cpp's block types, exactly.

Every type here is filled so that what llama.cpp decodes is step · code − minimum, to the bit. Types
of 256 columns have a number d of float16 for each block, and steps d · k of 16 or 32 columns; those
with minima a second number m, and minima m · l. Where integers have no minimum, such a type's is at
its lowest level: value = d · k · q − m · k, m = −d · low.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from jaxtyping import Float16, Float32, Int, UInt8

from nearplane.codes.block_types import GRIDS, LARGEST, BlockGrid

Codes = UInt8[np.ndarray, "blocks columns"]
Factors = Float16[np.ndarray, "blocks"]
Multiples = Int[np.ndarray, "blocks each"]
Factored = tuple[Factors, Multiples]
Bytes = UInt8[np.ndarray, "blocks bytes"]


@dataclass(frozen=True)
class BlockType:
    """A type of blocks, and how its bytes are arranged.

    - `grid`: the integers and steps that it holds. `pack`: codes from 0 up, d and k, and of types
      with minima also m and l -> bytes.
    """

    grid: BlockGrid
    pack: Callable[..., Bytes]

    @property
    def ggml(self) -> GGMLQuantizationType:
        return GGMLQuantizationType[self.grid.name]

    @property
    def columns(self) -> int:
        """Columns of a block."""
        return GGML_QUANT_SIZES[self.ggml][0]

    def holds(self, code: Int[np.ndarray, "rows columns"], minima: bool = False) -> bool:
        """Whether all integers are levels of the type, or integers beside its minima."""
        low, high = int(code.min()), int(code.max())
        if minima:
            return self.grid.minima and 0 <= low <= high <= self.grid.highest
        inside = self.grid.low <= low <= high <= self.grid.high
        return inside and (not self.grid.levels or bool(np.isin(code, self.grid.levels).all()))

    def factors(
        self,
        step: Float32[np.ndarray, "rows groups"],
        minimum: Float32[np.ndarray, "rows groups"] | None = None,
    ) -> tuple[Any, ...] | None:
        """Return d of every block and k of every group, step = d · k; None if there are none.

        And of a type with minima also m and l, minimum = m · l.
        """
        made = self.products(step, 1)
        if made is None or not self.grid.minima:
            return made if minimum is None else None
        if minimum is None:
            return *made, -self.grid.low * made[0], made[1]
        least = self.products(minimum, 0)
        return least and (*made, *least)

    def products(self, step: Float32[np.ndarray, "rows groups"], fewest: int) -> Factored | None:
        """Return one number of float16 a block and a multiple of it a group, which make `step`.

        - `fewest`: the least multiple, where all have one sign.
        """
        each = self.columns // self.grid.group
        wide = step.reshape(-1, each)
        largest = np.abs(wide).max(1)
        several = self.grid.signed and self.grid.multiples > 0
        # where a group's step cannot be negative by itself, a block's factor may be
        sign = np.ones(len(wide)) if several else np.where((wide < 0).any(1), -1.0, 1.0)
        factor = np.zeros(len(wide), np.float16)
        multiple = np.zeros(wide.shape, np.int64)
        open_ = np.arange(len(wide))
        for most in range(1, max(self.grid.multiples, 1) + 1):
            with np.errstate(all="ignore"):
                own = (largest[open_] / np.float32(most) * sign[open_]).astype(np.float16)
                found = np.rint(wide[open_] / own.astype(np.float32)[:, None])
                found[largest[open_] == 0] = 0
                exact = (own.astype(np.float32)[:, None] * found == wide[open_]).all(1)
            least = -most if several else fewest
            exact &= (found >= least).all(1)
            if fewest:
                exact &= (found != 0).all(1) & (np.abs(own) <= LARGEST)
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
        minimum: Float32[np.ndarray, "rows groups"] | None = None,
    ) -> UInt8[np.ndarray, "rows bytes"]:
        """Return the tensor's bytes; ValueError for steps or minima that the type does not hold.

        - `step`, `minimum`: of every group.
        """
        made, levels = self.factors(step, minimum), self.grid.levels
        if made is None:
            raise ValueError(f"{self.grid.name} does not hold these steps")
        low = self.grid.low if minimum is None else 0
        raised = np.searchsorted(levels, code) if levels else code - low
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


def six_bits(multiple: Multiples, least: Multiples) -> Bytes:
    """Return the multiples of eight steps and of eight minima, in 6 bits each."""
    parts = [np.split(each.astype(np.uint8), 2, axis=1) for each in (multiple, least)]
    first = [low | high >> 4 << 6 for low, high in parts]
    return np.hstack([*first, parts[0][1] & 15 | (parts[1][1] & 15) << 4])


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


def q4_1(code: Codes, factor: Factors, _: Multiples, minimum: Factors, __: Multiples) -> Bytes:
    """Return blocks of integers of 4 bits, as Q4_0, and what is added to them."""
    return np.hstack([halves(factor, -minimum), nibbles(code, 16)])


def q5_1(code: Codes, factor: Factors, _: Multiples, minimum: Factors, __: Multiples) -> Bytes:
    """Return blocks of integers of 4 bits, and a fifth apart, and what is added to them."""
    fifth = np.packbits(code >> 4 & 1, axis=1, bitorder="little")
    return np.hstack([halves(factor, -minimum), fifth, nibbles(code, 16)])


def q4_k(
    code: Codes, factor: Factors, multiple: Multiples, minimum: Factors, least: Multiples
) -> Bytes:
    """Return blocks of integers of 4 bits, with factors and minima of 32 columns."""
    return np.hstack([halves(factor, minimum), six_bits(multiple, least), nibbles(code, 32)])


def q5_k(
    code: Codes, factor: Factors, multiple: Multiples, minimum: Factors, least: Multiples
) -> Bytes:
    """Return blocks of integers as Q4_K, and a fifth bit apart."""
    head = halves(factor, minimum), six_bits(multiple, least)
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


def q2_k(
    code: Codes, factor: Factors, multiple: Multiples, minimum: Factors, least: Multiples
) -> Bytes:
    """Return blocks of integers of 2 bits, with factors and minima of 16 columns."""
    four = (multiple | least << 4).astype(np.uint8)
    return np.hstack([four, pairs(code), halves(factor, minimum)])


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
    BlockType(GRIDS["Q4_1"], q4_1),
    BlockType(GRIDS["Q5_K"], q5_k),
    BlockType(GRIDS["Q5_0"], q5_0),
    BlockType(GRIDS["Q5_1"], q5_1),
    BlockType(GRIDS["Q6_K"], q6_k),
    BlockType(GRIDS["Q8_0"], q8_0),
)

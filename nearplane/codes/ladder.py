"""Column steps on a logarithmic grid, the "ladder" of docs/formats/record.md.

A step is base · m / 8 · 2^k with m = 8, 10, 11 or 13: four steps to a factor of two. Its index in
this grid is its rung, 4 k + (index of m). A few bits a column store the rungs above the lowest.
"""

import struct

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from nearplane.codes.corrupt import require
from nearplane.codes.dense import pack_bits, packed_bytes, unpack_bits, width_of

HEADER = struct.Struct("<fh")  # base, lowest rung
RUNGS = np.array([8, 10, 11, 13])  # m: each has four bits, and neighbours a ratio near 2^(1/4)
BASE_BITS = 16  # significant bits of a base, so that base · rung_value(rung) is exact in float32
WIDEST = 8  # most bits for a rung above the lowest
ROW_HEADER = struct.Struct("<h")  # lowest rung of the rows' factors, whose base is 1
ROW_WIDTH = 4  # bits of their rungs above it


def rung_value(rung: Int64[np.ndarray, " count"]) -> Float32[np.ndarray, " count"]:
    """Return RUNGS[rung mod 4] / 8 · 2^⌊rung / 4⌋."""
    return np.ldexp(RUNGS[rung % 4] / 8, rung // 4).astype(np.float32)


def ladder_steps(wanted: Float[Tensor, " n"], width: int = WIDEST) -> Float32[Tensor, " n"]:
    """Round positive numbers to the grid with base 1, by ratio: off by a factor of 1.13 at most.

    Numbers 2^width rungs or more below the highest are raised, so that `width` bits hold all rungs.
    """
    octaves = torch.log2(wanted.double()).cpu().numpy()
    inside = np.log2(RUNGS / 8)
    # above the last m of an octave comes the first of the next octave
    edges = (inside + np.append(inside[1:], 1.0)) / 2
    whole = np.floor(octaves).astype(np.int64)
    rung = 4 * whole + np.searchsorted(edges, octaves - whole)
    rung = np.maximum(rung, rung.max(initial=-(2**15)) - 2**width + 1)
    return torch.from_numpy(rung_value(rung)).to(wanted.device)


def round_base(base: float) -> float:
    """Round `base` to BASE_BITS significant bits."""
    mantissa, exponent = np.frexp(base)
    return float(np.ldexp(np.rint(np.ldexp(mantissa, BASE_BITS)), exponent - BASE_BITS))


def stored_bytes(width: int, count: int) -> int:
    """Return the size of `count` steps whose rungs take `width` bits."""
    return HEADER.size + packed_bytes(width, count)


def encode(step: Float32[np.ndarray, " count"]) -> tuple[int, bytes] | None:
    """Return the bits of a rung and the bytes of the steps; None unless all are on one grid."""
    if len(step) < 2 or not (step > 0).all():
        return None
    found = rungs_on(step)
    if found is None:
        return None
    base, rung = found
    low = int(rung.min())
    width = width_of(int(rung.max()) - low)
    if width > WIDEST or not -(2**15) <= low < 2**15:
        return None
    return width, HEADER.pack(base, low) + pack_bits(rung - low, width)


def rungs_on(
    step: Float32[np.ndarray, " count"],
) -> tuple[np.float32, Int64[np.ndarray, " count"]] | None:
    """Return (base, rungs) with step = base · rung_value(rung) exactly; None if there are none."""
    for first in range(len(RUNGS)):
        # any of the four m may be that of the first step
        base = np.float32(step[0] / (RUNGS[first] / 8))
        octaves = np.log2(step.astype(np.float64) / float(base))
        near = np.rint(4 * octaves).astype(np.int64)
        if np.array_equal(base * rung_value(near), step):
            return base, near
    return None


def decode(buffer: bytes | memoryview, width: int, count: int) -> Float32[np.ndarray, " count"]:
    """Return the steps in `buffer`, which has exactly `stored_bytes(width, count)` bytes."""
    base, low = HEADER.unpack(buffer[: HEADER.size])
    # "base MUST be finite and positive"
    require(bool(np.isfinite(base)) and base > 0, "a ladder's base is not a positive number")
    rung = unpack_bits(buffer[HEADER.size :], width, count)
    # compute the at most 2^WIDEST values first: with rungs of no bits, a few bytes may declare
    # millions of steps
    with np.errstate(over="ignore"):
        values = np.float32(base) * rung_value(low + np.arange(1 << width))
    return values.take(rung)


def row_bytes(rows: int) -> int:
    """Return the size of the factors of so many rows."""
    return ROW_HEADER.size + packed_bytes(ROW_WIDTH, rows)


def encode_rows(factor: Float32[np.ndarray, " rows"]) -> bytes:
    """Return the bytes of the rows' factors; ValueError unless ROW_WIDTH bits hold their rungs."""
    if (factor > 0).all() and np.isfinite(factor).all():
        rung = np.rint(4 * np.log2(factor.astype(np.float64))).astype(np.int64)
        low = int(rung.min())
        fits = rung.max() - low < 2**ROW_WIDTH and -(2**15) <= low < 2**15
        if fits and np.array_equal(rung_value(rung), factor):
            return ROW_HEADER.pack(low) + pack_bits(rung - low, ROW_WIDTH)
    raise ValueError(f"the rows' factors are not on 2^{ROW_WIDTH} neighbouring rungs of base 1")


def decode_rows(buffer: bytes | memoryview, rows: int) -> Float32[np.ndarray, " rows"]:
    """Return the factors in `buffer`, which has exactly `row_bytes(rows)` bytes."""
    (low,) = ROW_HEADER.unpack(buffer[: ROW_HEADER.size])
    rung = unpack_bits(buffer[ROW_HEADER.size :], ROW_WIDTH, rows)
    with np.errstate(over="ignore"):
        values = rung_value(low + np.arange(1 << ROW_WIDTH))
    # "every factor MUST be finite and positive"
    positive = bool((np.isfinite(values) & (values > 0)).all())
    require(positive, "a row's factor is not a positive number")
    return values.take(rung)

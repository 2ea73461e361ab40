"""Steps (others write scales) <-> bytes, in the shortest type that holds them exactly."""

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from nearplane.codes import ladder
from nearplane.codes.corrupt import require

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
LADDER = 16  # a step type LADDER + width: points of a logarithmic grid, `width` bits each
TYPE_BYTES = {FLOAT32: 4, FLOAT16: 2, BFLOAT16: 2}
TYPE_NAMES = {FLOAT32: "float32", FLOAT16: "float16", BFLOAT16: "bfloat16"}
SMALLEST_NORMAL, LARGEST = 2.0**-14, 65504.0  # of float16


def stored_bytes(kind: int, count: int) -> int:
    """Return the bytes of `count` steps of type `kind`; CorruptError if there is no such type."""
    if LADDER <= kind <= LADDER + ladder.WIDEST:
        return ladder.stored_bytes(kind - LADDER, count)
    require(kind in TYPE_BYTES, f"step type {kind} is unknown")
    return TYPE_BYTES[kind] * count


def round_step(step: Float[Tensor, "rows groups"]) -> Float32[Tensor, "rows groups"]:
    """Round steps to 16 bits, returned as float32.

    All are rounded to float16 if its normal range holds every magnitude (or zero), else to
    bfloat16. Methods call this before they choose codes, since `record.pack` never changes a step.
    ValueError if a rounded step is not finite.
    """
    step = step.to(torch.float32)
    step = step.to(sixteen_bits(step)).to(torch.float32)
    if not bool(step.isfinite().all()):
        raise ValueError("a step is not finite in the type that would store it")
    return step


def sixteen_bits(step: Float[Tensor, "rows groups"], leeway: float = 1) -> torch.dtype:
    """Return float16 if its normal range holds step / leeway and step · leeway, else bfloat16."""
    size = step.abs()
    fits = (size == 0) | ((size / leeway >= SMALLEST_NORMAL) & (size * leeway <= LARGEST))
    return torch.float16 if bool(fits.all()) else torch.bfloat16


def encode(step: Float32[np.ndarray, " count"]) -> tuple[int, bytes]:
    """Return the step type and the bytes of `step`, from which `decode` makes the same bits."""
    if not np.isfinite(step).all():
        raise ValueError("a step is not finite")
    on_ladder = ladder.encode(step)
    if on_ladder is not None and len(on_ladder[1]) < 2 * len(step):
        return LADDER + on_ladder[0], on_ladder[1]
    word = step.view(np.uint32)
    with np.errstate(over="ignore"):
        half = step.astype(np.float16)
    if np.array_equal(half.astype(np.float32).view(np.uint32), word):
        return FLOAT16, half.astype("<f2").tobytes()
    if not (word & 0xFFFF).any():
        return BFLOAT16, (word >> 16).astype("<u2").tobytes()
    return FLOAT32, step.astype("<f4").tobytes()


def decode(buffer: bytes | memoryview, kind: int, count: int) -> Float32[np.ndarray, " count"]:
    """Return the `count` steps in `buffer`, which has exactly `stored_bytes(kind, count)` bytes."""
    if kind >= LADDER:
        step = ladder.decode(buffer, kind - LADDER, count)
    elif kind == BFLOAT16:
        step = (np.frombuffer(buffer, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        step = np.frombuffer(buffer, "<f4" if kind == FLOAT32 else "<f2").astype(np.float32)
    # "Steps MUST be finite"
    require(bool(np.isfinite(step).all()), "a step is not finite")
    return step

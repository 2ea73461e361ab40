"""Shared by the methods whose codes have a fixed number of bits (RTN, GPTQ, SSQR): the result."""

from math import ceil, log2

from jaxtyping import Float, Float64, Int32
from torch import Tensor

from nearplane import codes
from nearplane.lattice import Basis, am_gm_bits
from nearplane.methods.certificate import Losses
from nearplane.types import Outliers, QuantizedWeight

STEP_BITS = OUTLIER_BITS = 16
HEADER_BYTES = 150  # header and checksum of a record, and its entry in the checkpoint file


def pack(
    code: Int32[Tensor, "rows columns"],
    step: Float[Tensor, "rows groups"],
    group_size: int,
    bits: int,
    outliers: Outliers | None = None,
    minimum: Float[Tensor, "rows groups"] | None = None,
) -> tuple[Tensor, int]:
    """Return the record of codes of `bits` bits, and how many of its bytes are codes."""
    return codes.pack(code, step, group_size, outliers, codes.Dense(bits), minimum=minimum)


def stored_bytes(
    rows: int, columns: int, bits: int, group_size: int, outliers: float = 0.0
) -> float:
    """Return an estimate of the bytes of such a record.

    - `outliers`: the fraction of weights that are outliers; each takes 16 bits and a column index.
    """
    groups = ceil(columns / group_size)
    bits_per_weight = bits + outliers * (OUTLIER_BITS + ceil(log2(max(columns, 2))))
    return rows * (columns * bits_per_weight + groups * STEP_BITS) / 8 + HEADER_BYTES


def quantized_weight(
    parts: tuple[Int32[Tensor, "rows columns"], Float[Tensor, "rows groups"], int],
    stored: tuple[Tensor, int],
    losses: Losses,
    certificate: tuple[Float64[Tensor, " rows"] | None, str],
    basis: Basis,
    outliers: Outliers | None = None,
) -> QuantizedWeight:
    """Return the result of a method.

    - `parts`: codes in the original order of columns, steps, group size.
    - `stored`: the record, and how many of its bytes are codes.
    - `certificate`: the bound of every row, and why any has none.
    """
    code, step, group_size = parts
    record, code_bytes = stored
    share = len(outliers.value) / code.numel() if outliers is not None else 0.0
    return QuantizedWeight(
        code=code,
        step=step,
        group_size=group_size,
        outliers=outliers,
        record=record,
        code_bytes=code_bytes,
        loss=losses.loss,
        damped_loss=losses.damped,
        bound=certificate[0],
        void=certificate[1],
        facts={
            "outliers": share,
            "am_gm_bits": am_gm_bits(basis.factor),
            "damping": basis.damping,
        },
    )

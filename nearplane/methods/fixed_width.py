"""What the methods with a fixed number of bits share: the record and its certificate."""

from math import ceil, log2

from jaxtyping import Float, Float64, Int32
from torch import Tensor

from nearplane import codes
from nearplane.lattice import Basis, am_gm_bits
from nearplane.methods.certificate import Losses
from nearplane.types import Outliers, QuantizedWeight

STEP_BITS = OUTLIER_BITS = 16
HEADER_BYTES = 150  # of a record with its check sum, and of its entry in the file


def pack(
    code: Int32[Tensor, "rows columns"],
    step: Float[Tensor, "rows groups"],
    group_size: int,
    bits: int,
    outliers: Outliers | None = None,
) -> tuple[Tensor, int]:
    """Return the record of low-bit codes and how many of its bytes are codes."""
    return codes.pack(code, step, group_size, outliers, codes.Dense(bits))


def stored_bytes(
    rows: int, columns: int, bits: int, group_size: int, outliers: float = 0.0
) -> float:
    """Return about the bytes of such a record.

    - `outliers`: their share of all weights; each takes 16 bits and the number of its column.
    """
    groups = ceil(columns / group_size)
    each = bits + outliers * (OUTLIER_BITS + ceil(log2(max(columns, 2))))
    return rows * (columns * each + groups * STEP_BITS) / 8 + HEADER_BYTES


def certified(
    parts: tuple[Int32[Tensor, "rows columns"], Float[Tensor, "rows groups"], int],
    stored: tuple[Tensor, int],
    losses: Losses,
    certificate: tuple[Float64[Tensor, " rows"] | None, str],
    basis: Basis,
    outliers: Outliers | None = None,
) -> QuantizedWeight:
    """Return the weight of (code, step, group_size) with its record and certificate."""
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

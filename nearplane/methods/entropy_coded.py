"""What the entropy-coded methods share: the range of rates, the record, the facts they report."""

from jaxtyping import Float, Float64, Int32
from torch import Tensor

from nearplane import codes
from nearplane.lattice import Basis, am_gm_bits
from nearplane.methods.certificate import Losses
from nearplane.methods.method import check_range
from nearplane.types import QuantizedWeight


def check_bpw(bpw: float) -> None:
    """Raise OutOfRangeError unless a Huffman code can store `bpw` bits per weight."""
    check_range("bpw", bpw, 1.1, 12)


def facts_of(code: Int32[Tensor, "rows columns"], basis: Basis) -> dict[str, float]:
    """Return what a report says of the codes and the basis."""
    symbols, counts = codes.histogram(code.numpy().reshape(-1))
    return {
        "entropy": codes.entropy(counts),
        "largest_code": float(max(abs(int(symbols[0])), abs(int(symbols[-1])))),
        "am_gm_bits": am_gm_bits(basis.factor),
        "damping": basis.damping,
    }


def pack(
    code: Int32[Tensor, "rows columns"],
    step: Float[Tensor, "1 step_columns"],
    losses: Losses,
    bound: Float64[Tensor, " rows"] | None,
    void: str,
    facts: dict[str, float],
) -> QuantizedWeight:
    """Return the Huffman-coded weight with its certificate."""
    record, code_bytes = codes.record.pack(code, step, code.shape[1], None, codes.Huffman())
    return QuantizedWeight(
        code=code,
        step=step,
        group_size=code.shape[1],
        outliers=None,
        record=record,
        code_bytes=code_bytes,
        loss=losses.loss,
        damped_loss=losses.damped,
        bound=bound,
        void=void,
        facts=facts,
    )

"""Shared by the Huffman-coded methods (HPTQ, HRTN, WaterSIC): rate limits, result and report."""

from jaxtyping import Float64, Int32
from torch import Tensor

from nearplane import codes
from nearplane.lattice import Basis, am_gm_bits
from nearplane.methods.certificate import Losses
from nearplane.methods.method import check_range
from nearplane.methods.rate import histogram
from nearplane.methods.scale_search import CodedMatrix
from nearplane.types import QuantizedWeight


def check_bpw(bpw: float) -> None:
    """Raise OutOfRangeError unless a Huffman code can store `bpw` bits per weight."""
    check_range("bpw", bpw, 1.1, 12)


def report_facts(code: Int32[Tensor, "rows columns"], basis: Basis) -> dict[str, float]:
    """Return the numbers that the report shows for a layer."""
    symbols, counts = histogram(code)
    return {
        "entropy": codes.entropy(counts),
        "escapes": float(codes.choose_alphabet(symbols, counts, codes.Huffman().limit).escapes),
        "largest_code": float(max(abs(int(symbols[0])), abs(int(symbols[-1])))),
        "am_gm_bits": am_gm_bits(basis.factor),
        "damping": basis.damping,
    }


def quantized_weight(
    coded: CodedMatrix,
    stored: tuple[Tensor, int],
    losses: Losses,
    certificate: tuple[Float64[Tensor, " rows"] | None, str],
    basis: Basis,
) -> QuantizedWeight:
    """Return the result of a method, from codes in the original order of columns.

    - `stored`: the record, and how many of its bytes are codes.
    - `certificate`: the bound of every row, and why any has none.
    """
    return QuantizedWeight(
        code=coded.code,
        step=coded.step,
        group_size=coded.code.shape[1],
        outliers=None,
        record=stored[0],
        code_bytes=stored[1],
        loss=losses.loss,
        damped_loss=losses.damped,
        bound=certificate[0],
        void=certificate[1],
        facts=report_facts(coded.code, basis),
    )

"""RTN: round-to-nearest with a step for every group of columns."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from nearplane.lattice import Basis, nearest_integer
from nearplane.methods import fixed_width
from nearplane.methods.certificate import NO_LATTICE, measure
from nearplane.methods.fixed_width import pack, quantized_weight
from nearplane.methods.method import Method, check_range
from nearplane.methods.steps import check_group_size, code_range, mse_steps
from nearplane.types import QuantizedWeight, spread


@dataclass(frozen=True)
class RTN(Method):
    """Round every weight to its nearest value, with codes clipped to `bits` bits.

    The steps are those of least error, from `steps.mse_steps`.

    - `bits`: 2 to 8 per code.
    - `group_size`: columns that share a step; the whole row if it has no more columns.

    Raises OutOfRangeError for bits outside 2 .. 8.
    """

    bits: int = 3
    group_size: int = 128

    def __post_init__(self) -> None:
        check_range("bits", self.bits, 2, 8)
        check_range("group_size", self.group_size, 1, 1 << 30)

    def stored_bytes(self, rows: int, columns: int) -> float:
        return fixed_width.stored_bytes(rows, columns, self.bits, self.group_size)

    def quantize(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> QuantizedWeight:
        group_size = check_group_size(self.group_size, weight.shape[1])
        step = mse_steps(weight.float(), self.bits, group_size)
        wide = spread(step, group_size, weight.shape[1]).to(weight.dtype)
        code = nearest_integer(weight / wide, *code_range(self.bits)).int()
        losses = measure(weight, lambda rows: code[rows] * wide[rows], basis)
        stored = pack(code, step, group_size, self.bits)
        return quantized_weight((code, step, group_size), stored, losses, (None, NO_LATTICE), basis)

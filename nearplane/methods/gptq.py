"""GPTQ: nearest plane with clipped codes and a step for every group of columns."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from nearplane.lattice import Basis, nearest_plane
from nearplane.lattice.float64 import narrowed, widened
from nearplane.methods import fixed_width
from nearplane.methods.certificate import certify_rows, measure
from nearplane.methods.fixed_width import pack, quantized_weight
from nearplane.methods.method import LatticeMethod, check_order, check_range
from nearplane.methods.steps import check_group_size, code_range, mse_steps
from nearplane.types import QuantizedWeight, spread


@dataclass(frozen=True)
class GPTQ(LatticeMethod):
    """GPTQ [Frantar23, Alg. 1], computed by nearest plane, which gives the same codes.

    The equivalence is [Chen26, Thm. 4]. Steps are chosen for groups of neighbouring columns before
    the first weight is rounded (static groups), so no order needs a `g_idx`. A row with a clipped
    code has no bound.

    - `bits`: bits of each integer, 2 to 8; 4 is usual, 3 loses visibly more.
    - `group_size`: columns that share a step of 16 bits; the whole row if it has no more columns.
      32 to 128 are usual: smaller groups are more exact and cost 16 / group size bits a weight.
    - `damping`: fraction of the Hessian's mean diagonal that is added to it.
    - `hessian_steps`: False chooses steps by the weights alone, Σ |w_j − s·code_j|^2.4 as in GPTQ's
      code, in place of by what rounding to nearest adds to the loss, Σ R_jj² (w_j − s·code_j)².

    Raises OutOfRangeError for bits outside 2 .. 8.
    """

    bits: int = 3
    group_size: int = 128
    order: str = "activation"
    damping: float = 0.01
    hessian_steps: bool = True

    def __post_init__(self) -> None:
        check_range("bits", self.bits, 2, 8)
        check_range("group_size", self.group_size, 1, 1 << 30)
        check_order(self.order)
        check_range("damping", self.damping, 0, 1000)

    def stored_bytes(self, rows: int, columns: int) -> float:
        return fixed_width.stored_bytes(rows, columns, self.bits, self.group_size)

    def quantize(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> QuantizedWeight:
        group_size = check_group_size(self.group_size, weight.shape[1])
        wide_weight = weight.float()
        importance = narrowed(basis.pivots.square(), wide_weight) if self.hessian_steps else None
        step = mse_steps(wide_weight, self.bits, group_size, importance)
        wide = spread(step, group_size, weight.shape[1]).to(weight.dtype).expand_as(weight)
        wide = wide[:, basis.columns]
        target, factor = weight[:, basis.columns], narrowed(basis.factor, weight)
        code = nearest_plane(target, factor, wide, *code_range(self.bits))
        invperm = basis.columns.argsort()

        def value(rows: slice) -> Tensor:
            return (code[rows] * wide[rows])[:, invperm]

        def sides(rows: slice) -> Tensor:
            return basis.factor.diagonal() * widened(wide[rows]).abs()

        losses = measure(weight, value, basis, sides)
        certificate = certify_rows(losses)
        stored = pack(code[:, invperm], step, group_size, self.bits)
        return quantized_weight(
            (code[:, invperm], step, group_size), stored, losses, certificate, basis
        )

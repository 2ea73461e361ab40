"""HPTQ: unclipped nearest plane with one step for the matrix, entropy coded."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nearplane.lattice import Basis, nearest_plane
from nearplane.methods.certificate import certify_rows, measure
from nearplane.methods.entropy_coded import certified, check_bpw
from nearplane.methods.method import Method, check_order, check_range
from nearplane.methods.rate import Budget, Coded, expected_pull, first_scale, meet, sample_rows
from nearplane.types import QuantizedWeight


@dataclass(frozen=True)
class HPTQ(Method):
    """Nearest plane on ℤ with one step, chosen so that Huffman codes meet `bpw` [Chen26, Alg. 11].

    value = step · code, code unbounded; every row's loss obeys Theorem 5.

    - `bpw`: bits per weight of everything stored, an upper limit.
    - `damping`: fraction of the Hessian's mean diagonal that is added to it.

    Raises OutOfRangeError for a bpw outside 1.1 .. 12, RateError when a matrix is too small for it.
    """

    bpw: float = 3.125
    order: str = "activation"
    damping: float = 0.01

    def __post_init__(self) -> None:
        check_bpw(self.bpw)
        check_order(self.order)
        check_range("damping", self.damping, 0, 1000)

    def check(self, rows: int, columns: int) -> None:
        Budget(self.bpw, rows, columns, 1).check()

    def quantize(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> QuantizedWeight:
        rows, columns = weight.shape
        target = weight[:, basis.columns]
        factor = basis.factor.to(weight.dtype)

        def attempt(scale: float, some: slice) -> Coded:
            step = torch.full((1, 1), scale, dtype=torch.float32)
            return Coded(nearest_plane(target[some], factor, step.to(weight.dtype)), step)

        budget, some = Budget(self.bpw, rows, columns, 1), sample_rows(rows, columns)
        start = first_scale(budget, target[some], expected_pull(factor, len(target[some])))
        rounded, stored = meet(attempt, basis.columns.argsort(), budget, start)
        losses = measure(weight, rounded.code * rounded.step.to(weight.dtype), basis)
        sides = basis.factor.diagonal()[None] * rounded.step.double()
        return certified(rounded, stored, losses, certify_rows(losses, sides), basis)

"""HRTN: round-to-nearest with one step for the matrix and Huffman codes."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nearplane import codes
from nearplane.lattice import Basis, nearest_integer
from nearplane.methods.certificate import NO_LATTICE, measure
from nearplane.methods.entropy_coded import check_bpw, quantized_weight
from nearplane.methods.method import RateMethod
from nearplane.methods.rate import Budget, first_scale, sample_rows
from nearplane.methods.scale_search import CodedMatrix, ScaleRequest, run_searches, search_scale
from nearplane.types import QuantizedWeight


@dataclass(frozen=True)
class HRTN(RateMethod):
    """HPTQ with code = round(weight / step) instead of nearest plane [Chen26, Alg. 12].

    - `bpw`: bits per weight of everything stored, an upper limit.

    Raises OutOfRangeError for a bpw outside 1.1 .. 12, RateError when a matrix is too small for it.
    """

    bpw: float = 3.125

    def __post_init__(self) -> None:
        check_bpw(self.bpw)

    def check(self, rows: int, columns: int) -> None:
        Budget(self.bpw, rows, columns, 1).check()

    def quantize(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> QuantizedWeight:
        rows, columns = weight.shape

        def rounded(requests: dict[int, ScaleRequest]) -> dict[int, CodedMatrix]:
            step = codes.round_step(weight.new_full((1, 1), requests[0].scale))
            return {
                0: CodedMatrix(
                    nearest_integer(weight[requests[0].rows] / step, None, None).int(), step
                )
            }

        budget = Budget(self.bpw, rows, columns, 1)
        start = first_scale(budget, weight[sample_rows(rows, columns)], None)
        ((coded, stored),) = run_searches(
            [search_scale(budget, start, torch.arange(columns, device=weight.device))], rounded
        )
        losses = measure(weight, coded.value_in(weight.dtype), basis)
        return quantized_weight(coded, stored, losses, (None, NO_LATTICE), basis)

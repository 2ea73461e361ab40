"""HPTQ: unclipped nearest plane with one step for the matrix, entropy coded."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nearplane.lattice import Basis, nearest_plane
from nearplane.methods.certificate import certify_rows, measure
from nearplane.methods.entropy_coded import certified, check_bpw
from nearplane.methods.method import Method, check_order, check_range
from nearplane.methods.rate import Budget, expected_pull, first_scale, sample_rows
from nearplane.methods.search import Coded, Search, Stored, Try, drive, meet
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
        return self.quantize_together([weight], basis)[0]

    def quantize_together(self, weights: list[Tensor], basis: Basis) -> list[QuantizedWeight]:
        """Return weights that share a basis, each with its own step, in common sweeps."""
        factor = basis.factor.to(weights[0].dtype)
        targets = [weight[:, basis.columns] for weight in weights]
        back = basis.columns.argsort()
        searches = [self.search(target, factor, back) for target in targets]
        found = drive(searches, lambda tries: sweep_together(targets, factor, tries))
        return [
            certified_on(weight, coded, stored, basis)
            for weight, (coded, stored) in zip(weights, found, strict=True)
        ]

    def search(self, target: Tensor, factor: Tensor, back: Tensor) -> Search:
        """Return the search for the step of one matrix."""
        rows, columns = target.shape
        budget, some = Budget(self.bpw, rows, columns, 1), sample_rows(rows, columns)
        start = first_scale(budget, target[some], expected_pull(factor, len(target[some])))
        return meet(budget, start, back)


def sweep_together(
    targets: list[Tensor], factor: Float[Tensor, "n n"], tries: dict[int, Try]
) -> dict[int, Coded]:
    """Return the codes of every try, from one walk over the columns for all of them."""
    rows = [targets[index][wish.rows] for index, wish in tries.items()]
    scales = [torch.full((1, 1), wish.scale, dtype=torch.float32) for wish in tries.values()]
    step = torch.cat([s.expand(len(r), 1) for s, r in zip(scales, rows, strict=True)])
    code = nearest_plane(torch.cat(rows), factor, step.to(factor.dtype))
    parts = code.split([len(r) for r in rows])
    return {i: Coded(part, s) for i, part, s in zip(tries, parts, scales, strict=True)}


def certified_on(weight: Tensor, coded: Coded, stored: Stored, basis: Basis) -> QuantizedWeight:
    """Return the weight with the certificate of Theorem 5."""
    losses = measure(weight, coded.code * coded.step.to(weight.dtype), basis)
    sides = basis.factor.diagonal()[None] * coded.step.double()
    return certified(coded, stored, losses, certify_rows(losses, sides), basis)

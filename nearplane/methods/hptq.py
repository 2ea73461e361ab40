"""HPTQ: unclipped nearest plane with one step for the matrix, entropy coded."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from nearplane import lattice
from nearplane.lattice import Basis, nearest_plane
from nearplane.methods.certificate import certify_rows, measure
from nearplane.methods.entropy_coded import certified, check_bpw
from nearplane.methods.method import Method, check_order, check_range
from nearplane.methods.rate import Budget, expected_pull, first_scale, sample_rows
from nearplane.methods.scale_search import Coded, ScaleRequest, Search, Stored, drive, meet
from nearplane.rows import RowsOf, by_rows, kept
from nearplane.types import QuantizedWeight


@dataclass(frozen=True)
class TargetRows:
    """A weight on its basis's columns, some rows of it at a time."""

    rows: int
    some: RowsOf

    @classmethod
    def of(cls, weight: Float[Tensor, "rows columns"], basis: Basis) -> "TargetRows":
        return cls(len(weight), kept(lambda rows: weight[rows][:, basis.columns]))


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

    def basis(self, hessian: Float[Tensor, "columns columns"]) -> Basis:
        return lattice.basis(hessian, self.order, self.damping)

    @property
    def sweeps(self) -> bool:
        return True

    @property
    def rate(self) -> float:
        return self.bpw

    def at(self, bpw: float) -> "HPTQ":
        return replace(self, bpw=bpw)

    def stored_bytes(self, rows: int, columns: int) -> float:
        return rows * columns * self.bpw / 8

    def quantize(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> QuantizedWeight:
        return self.quantize_together([weight], basis)[0]

    def quantize_together(self, weights: list[Tensor], basis: Basis) -> list[QuantizedWeight]:
        """Return weights that share a basis, each with its own step, in common sweeps."""
        factor = basis.factor.to(weights[0].dtype)
        targets = [TargetRows.of(weight, basis) for weight in weights]
        back = basis.columns.argsort()
        searches = [self.search(target, factor, back) for target in targets]
        found = drive(searches, lambda tries: sweep_together(targets, factor, tries))
        return [
            certified_on(weight, coded, stored, basis)
            for weight, (coded, stored) in zip(weights, found, strict=True)
        ]

    def search(self, target: TargetRows, factor: Tensor, back: Tensor) -> Search:
        """Return the search for the step of one matrix."""
        rows, columns = target.rows, len(back)
        sample = range(rows)[sample_rows(rows, columns)]
        budget = Budget(self.bpw, rows, columns, 1)
        some = target.some(slice(sample.start, sample.stop, sample.step))
        start = first_scale(budget, some, expected_pull(factor, len(some)))
        return meet(budget, start, back)


def sweep_together(
    targets: list[TargetRows], factor: Float[Tensor, "n n"], tries: dict[int, ScaleRequest]
) -> dict[int, Coded]:
    """Return the codes of every try, from one walk over the columns for all of them."""
    wanted = {index: range(targets[index].rows)[wish.rows] for index, wish in tries.items()}
    scales = {i: torch.full((1, 1), t.scale, dtype=torch.float32) for i, t in tries.items()}

    def rounded(rows: slice) -> tuple[Tensor]:
        some = overlapping(wanted, rows)
        target = torch.cat([targets[i].some(slice(r.start, r.stop, r.step)) for i, r in some])
        step = torch.cat([scales[i].expand(len(r), 1) for i, r in some])
        return (nearest_plane(target, factor, step.to(factor.dtype)),)

    lengths = list(map(len, wanted.values()))
    (code,) = by_rows(rounded, sum(lengths))
    parts = zip(tries, code.split(lengths), strict=True)
    return {index: Coded(part, scales[index]) for index, part in parts}


def overlapping(wanted: dict[int, range], rows: slice) -> list[tuple[int, range]]:
    """Return which of the wanted rows are `rows` when all stand below each other."""
    found, first = [], 0
    for index, each in wanted.items():
        part = each[max(rows.start - first, 0) : max(rows.stop - first, 0)]
        if part:
            found.append((index, part))
        first += len(each)
    return found


def certified_on(weight: Tensor, coded: Coded, stored: Stored, basis: Basis) -> QuantizedWeight:
    """Return the weight with the certificate of Theorem 5."""
    sides = basis.factor.diagonal()[None] * coded.step.double()
    losses = measure(weight, coded.value_in(weight.dtype), basis, lambda _: sides)
    return certified(coded, stored, losses, certify_rows(losses), basis)

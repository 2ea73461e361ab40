"""HPTQ: nearest plane without clipping, with one step for the matrix and Huffman codes."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nearplane import codes
from nearplane.lattice import Basis, nearest_plane
from nearplane.lattice.float64 import narrowed, widened
from nearplane.methods.certificate import certify_rows, measure
from nearplane.methods.entropy_coded import check_bpw, quantized_weight
from nearplane.methods.method import LatticeMethod, RateMethod, check_order, check_range
from nearplane.methods.rate import Budget, drawn_pull, first_scale, sample_rows
from nearplane.methods.scale_search import (
    CodedMatrix,
    PackedRecord,
    ScaleRequest,
    Search,
    run_searches,
    search_scale,
)
from nearplane.rows import RowsOf, by_rows, cached_rows, rows_at_once
from nearplane.types import QuantizedWeight


@dataclass(frozen=True)
class TargetRows:
    """The rows of a weight in the basis's order of columns, made when they are asked for."""

    count: int
    rows: RowsOf

    @classmethod
    def of(cls, weight: Float[Tensor, "rows columns"], basis: Basis) -> "TargetRows":
        return cls(
            len(weight), cached_rows(lambda rows: weight[rows][:, basis.columns], len(weight))
        )


@dataclass(frozen=True)
class HPTQ(LatticeMethod, RateMethod):
    """Nearest plane with one step, chosen so that Huffman codes meet `bpw` [Chen26, Alg. 11].

    value = step · code, where codes are not clipped, so Theorem 5 bounds the loss of every row.

    - `bpw`: bits per weight of everything stored, an upper limit.
    - `damping`: fraction of the Hessian's mean diagonal that is added to it.

    Raises OutOfRangeError for a bpw outside 1.1 .. 12, RateError when a matrix is too small for it.
    """

    bpw: float = 3.125
    order: str = "activation"
    damping: float = 0.01

    # rows in the basis's order, the best integers so far, and those of a sweep before they are
    # joined
    rounding_bytes: ClassVar[int] = 12
    rounds_together: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_bpw(self.bpw)
        check_order(self.order)
        check_range("damping", self.damping, 0, 1000)

    def check(self, rows: int, columns: int) -> None:
        Budget(self.bpw, rows, columns, 1).check()

    def quantize(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> QuantizedWeight:
        return self.quantize_together([weight], basis)[0]

    def quantize_together(self, weights: list[Tensor], basis: Basis) -> list[QuantizedWeight]:
        """Quantize weights that share a basis, each with its own step, in the same sweeps."""
        factor = narrowed(basis.factor, weights[0])
        targets = [TargetRows.of(weight, basis) for weight in weights]
        invperm = basis.columns.argsort()
        searches = [self.search(target, factor, invperm) for target in targets]
        found = run_searches(searches, lambda requests: sweep_together(targets, factor, requests))
        return [
            with_certificate(weight, coded, stored, basis)
            for weight, (coded, stored) in zip(weights, found, strict=True)
        ]

    def search(self, target: TargetRows, factor: Tensor, invperm: Tensor) -> Search:
        """Return a search for the step of one matrix."""
        rows, columns = target.count, len(invperm)
        sample = range(rows)[sample_rows(rows, columns)]
        budget = Budget(self.bpw, rows, columns, 1)
        sampled = target.rows(slice(sample.start, sample.stop, sample.step))
        start = first_scale(budget, sampled, drawn_pull(factor, len(sampled)))
        return search_scale(budget, start, invperm)


def sweep_together(
    targets: list[TargetRows], factor: Float[Tensor, "n n"], requests: dict[int, ScaleRequest]
) -> dict[int, CodedMatrix]:
    """Round the rows of all requests in one sweep; return the codes of each request.

    - `requests`: by the index of the matrix in `targets`.
    """
    requested = {i: range(targets[i].count)[request.rows] for i, request in requests.items()}
    steps = {
        i: codes.round_step(torch.full((1, 1), request.scale, device=factor.device))
        for i, request in requests.items()
    }

    def rounded(rows: slice) -> tuple[Tensor]:
        parts = stacked_rows(requested, rows)
        target = torch.cat([targets[i].rows(slice(r.start, r.stop, r.step)) for i, r in parts])
        step = torch.cat([steps[i].expand(len(r), 1) for i, r in parts])
        return (nearest_plane(target, factor, step.to(factor.dtype)),)

    lengths, at_once = list(map(len, requested.values())), rows_at_once(len(factor), factor.device)
    (code,) = by_rows(rounded, sum(lengths), at_once=at_once)
    parts = zip(requests, code.split(lengths), strict=True)
    return {index: CodedMatrix(part, steps[index]) for index, part in parts}


def stacked_rows(requested: dict[int, range], rows: slice) -> list[tuple[int, range]]:
    """Return which rows of which matrix are `rows` of all requested rows, stacked on each other."""
    found, first = [], 0
    for index, each in requested.items():
        part = each[max(rows.start - first, 0) : max(rows.stop - first, 0)]
        if part:
            found.append((index, part))
        first += len(each)
    return found


def with_certificate(
    weight: Tensor, coded: CodedMatrix, stored: PackedRecord, basis: Basis
) -> QuantizedWeight:
    """Return the quantized weight with its losses and the bound of Theorem 5."""
    sides = basis.factor.diagonal()[None] * widened(coded.step)
    losses = measure(weight, coded.value_in(weight.dtype), basis, lambda _: sides)
    return quantized_weight(coded, stored, losses, certify_rows(losses), basis)

"""ECLQ: entropy-constrained lattice quantization, the default method.

Of everything that was tried it has what lowered the divergence at equal bytes: rate-aware rounding,
steps in inverse proportion to the pivots, code tables by row and column, targets that make up for
drifted inputs, and bits by equal slope.
"""

from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import ClassVar

import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor

from nearplane import codes, lattice
from nearplane.lattice import Basis, am_gm_bits
from nearplane.lattice.nearest_plane import scaled_factor
from nearplane.lattice.rate_aware import HIGH_RATE_SLOPE, Prices, cell_sides, rate_aware_plane
from nearplane.lattice.search import k_best
from nearplane.methods.certificate import bound_around, certify_cells, measure
from nearplane.methods.entropy_coded import check_bpw
from nearplane.methods.meet_rate import (
    Lattice,
    RateSolution,
    Terms,
    excess,
    meet_rate,
    predict_scale,
)
from nearplane.methods.method import Method, Target, check_order, check_range
from nearplane.methods.rate import RateError, drawn_errors, histogram, sample_rows
from nearplane.methods.scale_search import Coded
from nearplane.types import QuantizedWeight

LEAST_BYTES, LEAST_BPW = 64, 0.1  # that coding takes, whatever the integers


@dataclass(frozen=True)
class ECLQ(Method):
    """Rate-aware nearest plane with equal sides, coded by row and column [Chou89, Lifar26].

    value = step_j · code with step_j ∝ 1 / R_jj, on a ladder of quarter octaves. Every integer is
    that neighbour of its best value which minimises squared distance + ν · code length; lengths
    are those of the codes of the sweep before, until tables, steps and rounding agree. In a walk
    through a model, a layer's target makes up for what its inputs lost before it, and layers get
    bits by equal slope of the divergence that they cause.

    - `bpw`: bits per weight of everything stored, an upper limit; with `allocate` of all quantized
      layers together.
    - `paths`: partial rows that survive each column; 1 is greedy, K costs about K times as much.
    - `slope`: ν, the squared steps that a bit is worth; 2 ln 2 / 12 at high rate, 0 for none.
    - `unequal`: False gives all columns one step.
    - `contexts`: False codes all integers with one table.
    - `cross`: False rounds every layer on its own weights.
    - `allocate`: False gives every layer the same rate.

    A row's loss is at most (√B + √M)², where B = Σ_j c_ij² R_jj² step_j², c_ij is the half width of
    the widest cell of an integer of that context (½ without a rate term), and M the damped loss
    of the target itself, 0 for the weight.

    Raises OutOfRangeError for a bpw outside 1.1 .. 12, RateError when a matrix is too small for it.
    """

    bpw: float = 3.125
    order: str = "activation"
    damping: float = 0.1
    paths: int = 1
    slope: float = HIGH_RATE_SLOPE
    unequal: bool = True
    contexts: bool = True
    cross: bool = True
    allocate: bool = True

    def __post_init__(self) -> None:
        check_bpw(self.bpw)
        check_order(self.order)
        check_range("damping", self.damping, 0, 1000)
        check_range("paths", self.paths, 1, 256)
        check_range("slope", self.slope, 0, 1)

    def floor(self, rows: int, columns: int) -> float:
        # header, classes and tables; a rung a column; integers that are nearly all zero
        least = codes.record_bytes(columns, LEAST_BYTES)
        return LEAST_BPW + excess(least, rows * columns, 0.0)

    def check(self, rows: int, columns: int) -> None:
        floor = self.floor(rows, columns)
        if floor > self.bpw:
            raise RateError(
                f"{self.bpw:g} bits per weight cannot be met by a matrix of {rows} x {columns}: "
                f"the nearest that can is {ceil(floor * 100) / 100:g}"
            )

    @property
    def terms(self) -> Terms:
        return Terms(self.bpw, codes.Rans(self.contexts), self.slope)

    def basis(self, hessian: Float[Tensor, "columns columns"]) -> Basis:
        return lattice.basis(hessian, self.order, self.damping)

    @property
    def sweeps(self) -> bool:
        return True

    @property
    def rate(self) -> float:
        return self.bpw

    def at(self, bpw: float) -> "ECLQ":
        return replace(self, bpw=bpw)

    def stored_bytes(self, rows: int, columns: int) -> float:
        return rows * columns * self.bpw / 8

    @property
    def compensates(self) -> bool:
        return self.cross

    @property
    def allocates(self) -> bool:
        return self.allocate

    # the errors that its first code lengths are predicted from; the target's own loss, and that of
    # the result as an approximation of it
    triangular_solves: ClassVar[int] = 1
    target_certificates: ClassVar[int] = 2

    def quantize(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> QuantizedWeight:
        return self.quantize_towards(weight, basis, Target(weight))

    def quantize_towards(
        self, weight: Float[Tensor, "rows columns"], basis: Basis, target: Target
    ) -> QuantizedWeight:
        weight = self.checked(weight, basis)
        wanted = target.matrix.to(weight.dtype)
        scaled = lattice_of(wanted, basis, self.unequal)
        solution = meet_rate(scaled, self.terms, partial(self.rounded, scaled))
        code, step = solution.code, solution.step[:, scaled.back]
        value = Coded(code, step).value_in(weight.dtype)

        def sides(rows: slice) -> Tensor:
            return cell_sides(basis.factor, solution.step, solution.prices.of(rows))

        reached = measure(wanted, value, basis, sides)
        losses, target_loss = reached, torch.zeros_like(reached.damped)
        if wanted is not weight:
            losses = measure(weight, value, basis)
            target_loss = measure(weight, wanted.__getitem__, basis).damped
        bound, void = certify_cells(reached)
        facts = target.facts | facts_of(code, solution, basis)
        return QuantizedWeight(
            code=code,
            step=step,
            group_size=weight.shape[1],
            outliers=None,
            record=solution.stored[0],
            code_bytes=solution.stored[1],
            loss=losses.loss,
            damped_loss=losses.damped,
            bound=bound_around(bound, target_loss),
            void=void,
            # checkpoints call the target's own loss so
            facts=facts | {"aside": float(target_loss.sum())},
        )

    def drawn_error(
        self,
        weight: Float[Tensor, "rows columns"],
        basis: Basis,
        bpw: float,
        draws: torch.Generator,
    ) -> Float[Tensor, "rows columns"]:
        scaled = lattice_of(weight, basis, self.unequal)
        some = replace(scaled, target=scaled.target[sample_rows(*weight.shape)])
        scale, _ = predict_scale(some, replace(self, bpw=bpw).terms)
        unit = scaled_factor(scaled.factor, scaled.side, weight.dtype)
        error = drawn_errors(unit, len(weight), draws)
        return (error * scaled.side * scale)[:, scaled.back]

    def rounded(
        self, scaled: Lattice, step: Float32[Tensor, "1 n"], prices: Prices
    ) -> Int32[Tensor, "rows n"]:
        """Return the integers of one sweep."""
        if self.paths == 1:
            return rate_aware_plane(scaled.target, scaled.factor, step, prices)
        return k_best(scaled.target, scaled.factor, step, prices, self.paths)


def lattice_of(target: Float[Tensor, "rows n"], basis: Basis, unequal: bool) -> Lattice:
    """Return the target on the basis's columns, with sides R_jj step_j about equal if wanted."""
    pivots = basis.factor.diagonal()
    side = (
        codes.ladder_steps(1 / pivots) if unequal else torch.ones_like(pivots, dtype=torch.float32)
    )
    return Lattice(target[:, basis.columns], basis.factor, side[None], basis.columns.argsort())


def facts_of(
    code: Int32[Tensor, "rows columns"], solution: RateSolution, basis: Basis
) -> dict[str, float]:
    """Return what a report says of the codes and the basis."""
    symbols, counts = histogram(code)
    return {
        "entropy": codes.entropy(counts),
        "contexts": float(len(solution.prices.length)),
        "largest_code": float(max(abs(int(symbols[0])), abs(int(symbols[-1])))),
        "am_gm_bits": am_gm_bits(basis.factor),
        "damping": basis.damping,
    }

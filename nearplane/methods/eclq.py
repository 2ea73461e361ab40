"""ECLQ: entropy-constrained lattice quantization, the default method.

It combines what lowered the KL divergence at equal size: rate-aware rounding, steps in inverse
proportion to the pivots, entropy-coding tables by row and column, targets that compensate for the
changed inputs behind quantized layers, and a rate for each layer by its sensitivity.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import ClassVar

import torch
from jaxtyping import Float, Float32, Float64, Int32
from torch import Tensor

from nearplane import codes, lattice
from nearplane.codes.ladder import ROW_WIDTH
from nearplane.lattice import Basis, NotPositiveDefiniteError, am_gm_bits
from nearplane.lattice.bound import am_gm_bits_of
from nearplane.lattice.float64 import narrowed, widened
from nearplane.lattice.nearest_plane import scaled_factor
from nearplane.lattice.rate_aware import (
    HIGH_RATE_SLOPE,
    Prices,
    cell_sides,
    rate_aware_plane,
    unit_in_steps,
)
from nearplane.lattice.search import ScaledFactor, k_best
from nearplane.lattice.two_sided import moved_targets, round_two_sided
from nearplane.methods.certificate import bound_around, certify_cells, measure
from nearplane.methods.entropy_coded import check_bpw
from nearplane.methods.meet_rate import (
    RateSettings,
    RateSolution,
    RoundingProblem,
    meet_rate,
    predict_scale,
    rate_excess,
)
from nearplane.methods.method import LatticeMethod, RateMethod, Target, check_order, check_range
from nearplane.methods.rate import (
    RateError,
    drawn_errors,
    errors_from_residuals,
    histogram,
    sample_rows,
)
from nearplane.methods.scale_search import CodedMatrix
from nearplane.types import QuantizedWeight

OUTPUT_DAMPING = 1.0  # gradients are noisy: half of an output Hessian's diagonal is damping
LEAST_BYTES, LEAST_BPW = 64, 0.1  # what any record takes: in all, and for each weight


@dataclass(frozen=True)
class ECLQ(LatticeMethod, RateMethod):
    """Rate-aware nearest plane with steps ∝ 1 / R_jj, coded by rANS [Chou89, Lifar26].

    value = row_step_i · step_j · code, with steps on a logarithmic grid, four to a factor of two.
    Of the two integers around its best value, each column takes the one that minimises squared
    error + ν · code length.
    In a model, each layer is rounded towards a target that compensates for the errors of the layers
    in front of it (`lattice.cross_target`), on the lattice of its inputs and outputs
    (`lattice.round_two_sided`), where row_step ∝ 1 / the pivot of the output Hessian. It gets its
    rate by how much its errors change the model's predictions (`methods.allocation`). Rows of
    embeddings and output heads have steps by how much their tokens are used.

    - `bpw`: bits per weight of everything stored, an upper limit; with `allocate`, the mean over
      all quantized layers. From 1.1 to 12; 3 to 4.25 are usual.
    - `order`: which columns are rounded first, so that later ones make up for their errors:
      `activation`, those of the largest inputs; `min-pivot`, by the least pivot, for a small
      bound; `natural`, as they lie.
    - `damping`: fraction of the Hessian's mean diagonal that is added to it: larger values trust a
      short calibration text less. From 0.01 to 0.1 is usual.
    - `paths`: roundings of a row that are followed at once: 1 takes the best integer at every
      column, K search more and take about K times as long.
    - `slope`: how much squared error, in squared steps, is accepted to save one bit (ν): larger
      values give smaller integers and finer steps at the same size. 2 ln 2 / 12 fits high rates, 0
      heeds error alone.
    - `unequal`: False gives all columns the same step, as HPTQ does.
    - `contexts`: False codes all integers with one table, in place of one for alike columns.
    - `cross`: False rounds every layer towards its own weight, and not so that it makes up for
      the errors of the layers before it.
    - `two_sided`: False rounds every row by itself, with the same steps for all rows; it needs no
      backward passes of the model.
    - `allocate`: False gives every layer the same rate, so that none is probed first.

    A row's loss is at most (√B + √M)², where B = Σ_j c_ij² R_jj² step_ij². c_ij is the largest
    distance, in steps, between an integer of that context and its best value (½ for ν = 0), step_ij
    is step_j times the row's factor if it has one, and M is the damped loss of what the row was
    rounded towards, target and errors of other rows included, as an approximation of the weight.

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
    two_sided: bool = True
    allocate: bool = True

    def __post_init__(self) -> None:
        check_bpw(self.bpw)
        check_order(self.order)
        check_range("damping", self.damping, 0, 1000)
        check_range("paths", self.paths, 1, 256)
        check_range("slope", self.slope, 0, 1)

    def floor(self, rows: int, columns: int) -> float:
        # header, tables and one step for each column; then codes that are nearly all zero
        least = codes.record_bytes(columns, LEAST_BYTES)
        return LEAST_BPW + rate_excess(least, rows * columns, 0.0)

    def check(self, rows: int, columns: int) -> None:
        floor = self.floor(rows, columns)
        if floor > self.bpw:
            raise RateError(
                f"{self.bpw:g} bits per weight cannot be met by a matrix of {rows} x {columns}: "
                f"the nearest that can is {ceil(floor * 100) / 100:g}"
            )

    @property
    def settings(self) -> RateSettings:
        return RateSettings(self.bpw, codes.Rans(self.contexts), self.slope)

    @property
    def compensates(self) -> bool:
        return self.cross

    @property
    def scales_rows(self) -> bool:
        return True

    @property
    def weighs_outputs(self) -> bool:
        return self.two_sided

    @property
    def allocates(self) -> bool:
        return self.allocate

    # one solve, for `drawn_pull`; two more losses, of the target itself and with respect to it
    triangular_solves: ClassVar[int] = 1
    target_certificates: ClassVar[int] = 2

    def quantize(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> QuantizedWeight:
        return self.quantize_towards(weight, basis, Target(weight))

    def quantize_towards(
        self, weight: Float[Tensor, "rows columns"], basis: Basis, target: Target
    ) -> QuantizedWeight:
        weight = self.checked(weight, basis)
        target = replace(target, matrix=target.matrix.to(weight.dtype))
        problem = rounding_problem(target, basis, self.unequal)
        solution = meet_rate(problem, self.settings, partial(self.rounded, problem))
        code, step = solution.code, solution.step[:, problem.invperm]
        coded, row_step = CodedMatrix(code, step).value_in(weight.dtype), problem.row_step
        target_matrix = rounded_towards(target.matrix, problem, solution)

        def value(rows: slice) -> Tensor:
            return coded(rows) if row_step is None else row_step[rows] * coded(rows)

        def sides(rows: slice) -> Tensor:
            sides = cell_sides(basis.factor, solution.step, solution.prices.of(rows))
            return sides if row_step is None else widened(row_step[rows]) * sides

        losses_to_target = measure(target_matrix, value, basis, sides)
        losses, target_loss = losses_to_target, torch.zeros_like(losses_to_target.damped)
        if target_matrix is not weight:
            losses = measure(weight, value, basis)
            target_loss = measure(weight, target_matrix.__getitem__, basis).damped
        bound, void = certify_cells(losses_to_target)
        facts = target.facts | report_facts(code, solution, basis)
        if problem.outputs:
            facts["output_am_gm_bits"] = am_gm_bits_of(joined_pivots(problem.outputs))
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
            # the target's own damped loss; checkpoints store it under this name
            facts=facts | {"aside": float(target_loss.sum())},
            row_step=row_step,
        )

    def drawn_error(
        self, target: Target, basis: Basis, bpw: float, draws: torch.Generator
    ) -> Float[Tensor, "rows columns"]:
        problem = rounding_problem(target, basis, self.unequal)
        rows, columns = problem.target.shape
        sample = replace(problem, target=problem.target[sample_rows(rows, columns)])
        scale, _ = predict_scale(sample, replace(self, bpw=bpw).settings)
        unit = scaled_factor(problem.factor, problem.unit_step, target.matrix.dtype)
        error = drawn_errors(unit, rows, draws) * problem.unit_step * scale
        for block in problem.row_blocks:
            # a row's own error makes up for those of the rows behind it
            factor = narrowed(block.factor, error)
            error[block.order] = errors_from_residuals(factor, error[block.order])
        error = error[:, problem.invperm]
        return error if problem.row_step is None else problem.row_step * error

    def rounded(
        self, problem: RoundingProblem, step: Float32[Tensor, "1 n"], prices: Prices
    ) -> Int32[Tensor, "rows n"]:
        """Return the integers of one sweep, in the basis's order of columns."""
        by_themselves = self.rounding(problem, step)
        if not problem.row_blocks:
            return by_themselves(problem.target, prices)

        def some(target: Tensor, rows: Tensor) -> Tensor:
            return by_themselves(target, replace(prices, row=prices.row[rows]))

        return round_two_sided(problem.target, problem.row_blocks, step, some)

    def rounding(
        self, problem: RoundingProblem, step: Float32[Tensor, "1 n"]
    ) -> Callable[[Tensor, Prices], Int32[Tensor, "rows n"]]:
        """Return the function that rounds rows that do not make up for each other.

        What it needs of the factor is made once.
        """
        factor, dtype = problem.factor, problem.target.dtype
        if self.paths == 1:
            unit = unit_in_steps(factor, step, dtype)
            return lambda target, prices: rate_aware_plane(target, factor, step, prices, unit)
        scaled, paths = ScaledFactor.of(factor, step, dtype), self.paths
        return lambda target, prices: k_best(target, factor, step, prices, paths, scaled)


def rounding_problem(target: Target, basis: Basis, unequal: bool) -> RoundingProblem:
    """Return `target` as a rounding problem; with `unequal`, its steps are about ∝ 1 / R_jj.

    With an output Hessian, those of rows are about ∝ 1 / its pivots.
    """
    pivots, device = basis.factor.diagonal(), target.matrix.device
    unit_step = (
        codes.ladder_steps(1 / pivots) if unequal else torch.ones_like(pivots, dtype=torch.float32)
    ).to(device)
    row_step, outputs = target.row_step, output_bases(target)
    if outputs:
        size = joined_pivots(outputs)
        row_step = codes.ladder_steps(size.log().mean().exp() / size, ROW_WIDTH)[:, None].to(device)
    matrix = target.matrix if row_step is None else target.matrix / row_step
    invperm = basis.columns.argsort()
    columns = matrix[:, basis.columns]
    return RoundingProblem(columns, basis.factor, unit_step[None], invperm, row_step, outputs)


def output_bases(target: Target) -> list[Basis]:
    """Return the bases of the blocks of an output Hessian; none where one has no factor."""
    try:
        return [lattice.basis(h, "activation", OUTPUT_DAMPING) for h in target.output_hessian]
    except NotPositiveDefiniteError:
        return []


def joined_pivots(bases: Sequence[Basis]) -> Float64[Tensor, " n"]:
    """Return the pivots of several bases, in the original order."""
    return torch.cat([basis.pivots for basis in bases])


def rounded_towards(
    target: Float[Tensor, "rows columns"], problem: RoundingProblem, solution: RateSolution
) -> Float[Tensor, "rows columns"]:
    """Return what each row was rounded towards, moved by the errors of rows behind it."""
    if not problem.row_blocks or problem.row_step is None:
        return target
    given = problem.target
    error = given - solution.code[:, problem.invperm.argsort()] * solution.step
    moved = moved_targets(given, problem.row_blocks, error)
    return problem.row_step * moved[:, problem.invperm]


def report_facts(
    code: Int32[Tensor, "rows columns"], solution: RateSolution, basis: Basis
) -> dict[str, float]:
    """Return the numbers that the report shows for a layer."""
    symbols, counts = histogram(code)
    return {
        "entropy": codes.entropy(counts),
        "contexts": float(len(solution.prices.length)),
        "largest_code": float(max(abs(int(symbols[0])), abs(int(symbols[-1])))),
        "am_gm_bits": am_gm_bits(basis.factor),
        "damping": basis.damping,
    }

"""WaterSIC: HPTQ with one step per column, inversely proportional to its pivot, and a gain."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from nearplane import codes
from nearplane.lattice import Basis, sweep, unit_factor
from nearplane.lattice.float64 import narrowed, widened
from nearplane.methods.certificate import measure
from nearplane.methods.entropy_coded import check_bpw, quantized_weight
from nearplane.methods.method import LatticeMethod, RateMethod, check_order, check_range
from nearplane.methods.rate import Budget, drawn_pull, first_scale, sample_rows
from nearplane.methods.scale_search import CodedMatrix, ScaleRequest, run_searches, search_scale
from nearplane.methods.steps import SMALLEST
from nearplane.types import QuantizedWeight


@dataclass(frozen=True)
class WaterSIC(LatticeMethod, RateMethod):
    """Nearest plane with steps α_j = const / R_jj, so that all columns add the same loss [Lifar26].

    value_ij = γ_j α_j code_ij with the least-squares gain
    γ_j = ⟨code_j, best_j⟩ / (α_j ⟨code_j, code_j⟩). One 16-bit number, α_j γ_j, is stored per
    column.

    - `bpw`: bits per weight of everything stored, an upper limit.
    - `gain`: False leaves values as they were rounded (γ = 1) in place of scaling each column to
      least squares: Theorem 5 then bounds every row, not only their sum.

    With the gain, Theorem 5 still bounds the sum over all rows ("layer_bound" in `facts`), since
    γ_j only lowers the sum over rows of a column's squared residuals. The bound of one row is
    Σ_j (½ + |1 − γ_j| |code_ij|)² α_j² R_jj².

    Raises OutOfRangeError for a bpw outside 1.1 .. 12, RateError when a matrix is too small for it.
    """

    bpw: float = 3.125
    order: str = "activation"
    damping: float = 0.01
    gain: bool = True

    def __post_init__(self) -> None:
        check_bpw(self.bpw)
        check_order(self.order)
        check_range("damping", self.damping, 0, 1000)

    def check(self, rows: int, columns: int) -> None:
        Budget(self.bpw, rows, columns, columns).check()

    def quantize(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> QuantizedWeight:
        rows, columns = weight.shape
        target = weight[:, basis.columns]
        inverse_pivot = 1 / basis.factor.diagonal()

        def rounded(requests: dict[int, ScaleRequest]) -> dict[int, CodedMatrix]:
            decision_step = inverse_pivot * requests[0].scale
            return {0: round_columns(target[requests[0].rows], basis, decision_step, self.gain)}

        budget = Budget(self.bpw, rows, columns, columns)
        scaled = (target / narrowed(inverse_pivot, weight))[sample_rows(rows, columns)]
        unit = narrowed(basis.factor * inverse_pivot, weight)
        start = first_scale(budget, scaled, drawn_pull(unit, len(scaled)))
        ((coded, stored),) = run_searches(
            [search_scale(budget, start, basis.columns.argsort())], rounded
        )
        losses = measure(weight, coded.value_in(weight.dtype), basis)
        sides = widened(coded.chosen_with) * basis.pivots
        result = quantized_weight(coded, stored, losses, (row_bounds(coded, basis), ""), basis)
        return result.noting(layer_bound=float(sides.square().sum()) * rows / 4)


def round_columns(
    target: Float[Tensor, "rows n"], basis: Basis, decision_step: Float[Tensor, " n"], gain: bool
) -> CodedMatrix:
    """Choose codes with `decision_step`; store the step of least squared error in 16 bits."""
    # no denormal steps: they hold few digits, and gains change them
    decision_step = codes.round_step(decision_step.float()[None].clamp_min(SMALLEST))
    decision_step = narrowed(decision_step, target)
    stored_dtype = codes.sixteen_bits(decision_step, leeway=2.0)  # gains lie between ½ and 1½
    decision_step = decision_step.to(stored_dtype).to(target.dtype)
    # weights are divided by the decision steps, and then rounded with step 1
    columns = (target / decision_step).T.contiguous()
    gains = columns.new_ones(len(columns))
    code = torch.empty_like(columns)
    codes_of, gain_of, decision_of = code.unbind(), gains.unbind(), decision_step[0].unbind()

    def choose(j: int, best: Tensor) -> Tensor:
        nearest = torch.round(best, out=codes_of[j])
        if not gain:
            return nearest
        # a column of zeros keeps gain 1; later columns compensate for the step as it is stored
        fitted = nearest.dot(best) / nearest.dot(nearest) * decision_of[j]
        fitted = fitted.where(fitted == fitted, decision_of[j]).to(stored_dtype).to(target.dtype)
        return nearest * torch.div(fitted, decision_of[j], out=gain_of[j])

    scaled = narrowed(basis.factor * widened(decision_step), target)
    sweep(columns, unit_factor(scaled), choose)
    step = (decision_step * gains).to(stored_dtype).float()
    return CodedMatrix(
        code.T.to(torch.int32, memory_format=torch.contiguous_format), step, decision_step.float()
    )


def row_bounds(coded: CodedMatrix, basis: Basis) -> Float64[Tensor, " rows"]:
    """Return Σ_j (½ + |1 − γ_j| |code_ij|)² α_j² R_jj², an upper bound of each row's loss."""
    gain_error = widened(coded.chosen_with - coded.step).abs() * widened(coded.code.abs())
    return ((widened(coded.chosen_with) / 2 + gain_error) * basis.pivots).square().sum(1)

"""WaterSIC: HPTQ with one step per column, as large as its pivot is small, and a gain."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int32
from torch import Tensor

from nearplane import codes
from nearplane.lattice import Basis, nearest_integer, sweep
from nearplane.methods.certificate import Losses, measure
from nearplane.methods.entropy_coded import check_bpw, facts_of, pack
from nearplane.methods.method import Method, check_order, check_range
from nearplane.methods.rate import Budget, first_scale, meet, sample_rows
from nearplane.types import QuantizedWeight


@dataclass(frozen=True)
class Rounded:
    """One attempt on the basis's columns: codes, decision steps α and stored steps α·γ."""

    code: Int32[Tensor, "rows n"]
    alpha: Float[Tensor, " n"]
    step: Float[Tensor, " n"]


@dataclass(frozen=True)
class WaterSIC(Method):
    """Nearest plane with α_j = const / R_jj, so that every direction errs alike [Lifar26].

    value_ij = γ_j α_j code_ij with the gain γ_j = ⟨code_j, best_j⟩ / (α_j ⟨code_j, code_j⟩) of
    least error; one 16-bit number α_j γ_j is stored per column.

    - `bpw`: bits per weight of everything stored, an upper limit.
    - `gain`: False keeps γ = 1, and Theorem 5 then bounds every row before rounding.

    With the gain, Theorem 5 still bounds the sum over rows (fact "layer_bound"), since γ_j only
    lowers Σ_i of a column's squared residuals; a row's own bound becomes
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

        def attempt(scale: float, some: slice) -> Rounded:
            return round_columns(target[some], basis, inverse_pivot * scale, self.gain)

        some = sample_rows(rows, columns)
        start = first_scale(target[some] / inverse_pivot.to(weight.dtype), self.bpw)
        rounded = meet(attempt, lambda r: r.code, Budget(self.bpw, rows, columns, columns), start)
        back = basis.columns.argsort()
        code, step = rounded.code[:, back], rounded.step[back][None]
        losses = measure(weight, code * step.to(weight.dtype), basis)
        bound = row_bounds(rounded, basis)
        side = rounded.alpha.double() * basis.factor.diagonal()
        layer_bound = float(side.square().sum()) * rows / 4
        facts = facts_of(code, basis) | {"layer_bound": layer_bound}
        return pack(code, step, losses, bound, "", facts)


def round_columns(
    target: Float[Tensor, "rows n"], basis: Basis, alpha: Float[Tensor, " n"], gain: bool
) -> Rounded:
    """Round with decision steps α and give every column the step of least error, in 16 bits."""
    columns = target.T.contiguous()
    alpha = codes.round_step(alpha.float()[None])[0].to(target.dtype)
    step = alpha.clone()
    code = torch.empty_like(columns, dtype=torch.int32)

    def choose(j: int, best: Tensor) -> Tensor:
        nearest = nearest_integer(best / alpha[j], None, None)
        code[j] = nearest
        energy = nearest.square().sum()
        if gain and energy > 0:
            fitted = (nearest @ best / energy).float().view(1, 1).expand(1, 2)
            step[j] = codes.round_step(fitted)[0, 0]
        return nearest * step[j]

    sweep(columns, basis.factor.to(target.dtype), choose)
    return Rounded(code.T.contiguous(), alpha, step.float())


def row_bounds(rounded: Rounded, basis: Basis) -> Float64[Tensor, " rows"]:
    """Return Σ_j (½ + |1 − γ_j| |code_ij|)² α_j² R_jj², which no row's loss exceeds."""
    pivot = basis.factor.diagonal()
    alpha = rounded.alpha.double()
    drift = (alpha - rounded.step.double()).abs() * rounded.code.abs()
    return ((alpha / 2 + drift) * pivot).square().sum(1)

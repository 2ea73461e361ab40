"""WaterSIC: HPTQ with one step per column, as large as its pivot is small, and a gain."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from nearplane import codes, lattice
from nearplane.lattice import Basis, sweep
from nearplane.methods.certificate import measure
from nearplane.methods.entropy_coded import certified, check_bpw
from nearplane.methods.method import Method, check_order, check_range
from nearplane.methods.rate import Budget, expected_pull, first_scale, sample_rows
from nearplane.methods.scale_search import Coded, ScaleRequest, drive, meet
from nearplane.types import QuantizedWeight


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

    def basis(self, hessian: Float[Tensor, "columns columns"]) -> Basis:
        return lattice.basis(hessian, self.order, self.damping)

    @property
    def sweeps(self) -> bool:
        return True

    @property
    def rate(self) -> float:
        return self.bpw

    def at(self, bpw: float) -> "WaterSIC":
        return replace(self, bpw=bpw)

    def stored_bytes(self, rows: int, columns: int) -> float:
        return rows * columns * self.bpw / 8

    def quantize(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> QuantizedWeight:
        rows, columns = weight.shape
        target = weight[:, basis.columns]
        inverse_pivot = 1 / basis.factor.diagonal()

        def attempt(tries: dict[int, ScaleRequest]) -> dict[int, Coded]:
            side = inverse_pivot * tries[0].scale
            return {0: round_columns(target[tries[0].rows], basis, side, self.gain)}

        budget = Budget(self.bpw, rows, columns, columns)
        lattice = (target / inverse_pivot.to(weight.dtype))[sample_rows(rows, columns)]
        unit = (basis.factor * inverse_pivot).to(weight.dtype)
        start = first_scale(budget, lattice, expected_pull(unit, len(lattice)))
        ((coded, stored),) = drive([meet(budget, start, basis.columns.argsort())], attempt)
        losses = measure(weight, coded.value_in(weight.dtype), basis)
        sides = coded.side.double() * basis.pivots
        weight = certified(coded, stored, losses, (row_bounds(coded, basis), ""), basis)
        return weight.noting(layer_bound=float(sides.square().sum()) * rows / 4)


def round_columns(
    target: Float[Tensor, "rows n"], basis: Basis, side: Float[Tensor, " n"], gain: bool
) -> Coded:
    """Round with decision steps `side`; give every column the 16-bit step of least error."""
    side = codes.round_step(side.float()[None]).to(target.dtype)
    stored = codes.sixteen_bits(side, leeway=2.0)  # gains lie between ½ and 1½
    side = side.to(stored).to(target.dtype)
    # on the lattice of step 1, where integers are their own values
    columns = (target / side).T.contiguous()
    gains = torch.ones(len(columns), dtype=target.dtype)
    code = torch.empty_like(columns)
    codes_of, gain_of, side_of = code.unbind(), gains.unbind(), side[0].unbind()

    def choose(j: int, best: Tensor) -> Tensor:
        nearest = torch.round(best, out=codes_of[j])
        if not gain:
            return nearest
        # zeros keep gain 1; what is stored, not what was wished, is what later columns make up for
        fitted = nearest.dot(best) / nearest.dot(nearest) * side_of[j]
        fitted = fitted.nan_to_num(nan=float(side_of[j])).to(stored).to(target.dtype)
        return nearest * torch.div(fitted, side_of[j], out=gain_of[j])

    sweep(columns, (basis.factor * side.double()).to(target.dtype), choose)
    step = (side * gains).to(stored).float()
    return Coded(code.T.to(torch.int32, memory_format=torch.contiguous_format), step, side.float())


def row_bounds(coded: Coded, basis: Basis) -> Float64[Tensor, " rows"]:
    """Return Σ_j (½ + |1 − γ_j| |code_ij|)² side_j² R_jj², which no row's loss exceeds."""
    drift = (coded.side - coded.step).double().abs() * coded.code.abs()
    return ((coded.side.double() / 2 + drift) * basis.pivots).square().sum(1)

"""SSQR: low-bit integers with as many sparse 16-bit outliers as the user names."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float16, Int32
from torch import Tensor

from nearplane import codes, lattice
from nearplane.lattice import Basis, nearest_integer, sweep
from nearplane.methods import fixed_width
from nearplane.methods.certificate import certify_rows, measure
from nearplane.methods.fixed_width import certified, pack
from nearplane.methods.method import Method, OutOfRangeError, check_order, check_range
from nearplane.methods.steps import check_group_size, code_range, mse_steps
from nearplane.rows import by_rows
from nearplane.types import Outliers, QuantizedWeight, spread

BISECTIONS = 10
LARGEST = 65504.0  # of float16; a weight beyond it keeps an error, and its row loses the bound
WIDENINGS = 6  # doublings of the bracket before a rate counts as out of reach


@dataclass(frozen=True)
class Rounded:
    """One pass on the basis's columns."""

    code: Int32[Tensor, "rows n"]
    outlier: Float16[Tensor, "rows n"]
    is_outlier: Bool[Tensor, "rows n"]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.code, self.outlier, self.is_outlier

    @property
    def density(self) -> Float[Tensor, "rows 1"]:
        """The share of outliers in each row."""
        return self.is_outlier.float().mean(1, keepdim=True)


@dataclass(frozen=True)
class SSQR(Method):
    """Nearest plane on `bits`-bit integers; what leaves their range is kept as a sparse outlier.

    value = step · code + outlier [Chen26, Alg. 9, 10]. A factor κ on least-error steps is bisected
    until at most `outliers` of the weights leave the range: smaller κ, finer steps, more
    outliers. An outlier undoes its own error, so Theorem 5 survives it.

    - `bits`: 2 to 8 per code.
    - `group_size`: columns that share a step; more than there are means a whole row.
    - `outliers`: target rate, 0.01 is 1 %; an upper limit.
    - `per`: "row" finds a κ for every row, "matrix" one for all.

    Raises OutOfRangeError for values outside these ranges.
    """

    bits: int = 3
    group_size: int = 128
    outliers: float = 0.01
    order: str = "activation"
    damping: float = 0.01
    per: str = "row"

    def __post_init__(self) -> None:
        check_range("bits", self.bits, 2, 8)
        check_range("group_size", self.group_size, 1, 1 << 30)
        check_range("outliers", self.outliers, 0, 0.5)
        check_order(self.order)
        check_range("damping", self.damping, 0, 1000)
        if self.per not in ("row", "matrix"):
            raise OutOfRangeError(f"per must be 'row' or 'matrix', not {self.per!r}")

    def basis(self, hessian: Float[Tensor, "columns columns"]) -> Basis:
        return lattice.basis(hessian, self.order, self.damping)

    @property
    def sweeps(self) -> bool:
        return True

    def stored_bytes(self, rows: int, columns: int) -> float:
        return fixed_width.stored_bytes(rows, columns, self.bits, self.group_size, self.outliers)

    def quantize(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> QuantizedWeight:
        group_size = check_group_size(self.group_size, weight.shape[1])
        start = mse_steps(weight.float(), self.bits, group_size)
        step = self.search(weight, basis, start, group_size)
        rounder = self.rounder(weight, basis, step, group_size)
        rounded = Rounded(*by_rows(lambda rows: rounder(rows).parts, len(weight)))
        back = basis.columns.argsort()
        code, outliers = rounded.code[:, back], gather(rounded, back)
        wide = spread(step, group_size, weight.shape[1]).to(weight.dtype).expand_as(weight)
        value = code * wide
        outliers.add_to_(value)

        def sides(rows: slice) -> Tensor:
            return basis.factor.diagonal() * wide[rows][:, basis.columns].double().abs()

        losses = measure(weight, value.__getitem__, basis, sides)
        stored = pack(code, step, group_size, self.bits, outliers)
        certificate = certify_rows(losses)
        return certified((code, step, group_size), stored, losses, certificate, basis, outliers)

    def rounder(
        self, weight: Tensor, basis: Basis, step: Float[Tensor, "rows groups"], group_size: int
    ) -> Callable[[slice], Rounded]:
        """Return the function that rounds some rows, taking out what leaves the range of codes."""

        def rounded(rows: slice) -> Rounded:
            target = weight[rows]
            wide = spread(step[rows], group_size, target.shape[1]).to(target.dtype)
            wide = wide.expand_as(target)[:, basis.columns]
            return round_with_outliers(target[:, basis.columns], basis, wide, code_range(self.bits))

        return rounded

    def search(
        self, weight: Tensor, basis: Basis, start: Float[Tensor, "rows groups"], group_size: int
    ) -> Float[Tensor, "rows groups"]:
        """Return the steps κ · start with the smallest κ found whose outliers are few enough.

        log₂ κ is bisected from [−2, 2]; the density falls with κ only roughly, so the best κ that
        was seen to be feasible is kept. κ = 2^WIDENINGS is taken for feasible unseen: no weight
        is that large beside its step, unless its group is nearly zero.
        """
        low = torch.full((len(weight), 1), -2.0)
        high, best = -low, torch.full_like(low, torch.nan)
        for _ in range(BISECTIONS + WIDENINGS):
            middle = torch.where(best.isnan() & (low > -2), high * 2, (low + high) / 2)
            few = self.few_enough(
                self.rounder(weight, basis, scaled(start, middle), group_size), len(weight)
            )
            better = few & (best.isnan() | (middle < best))
            best = torch.where(better, middle, best)
            low, high = (
                torch.where(few, low, middle),
                torch.where(few, middle, high.maximum(middle)),
            )
            if not best.isnan().any() and float((high - low).max()) < 4 / 2**BISECTIONS:
                break
        return scaled(start, best.nan_to_num(float(WIDENINGS)))

    def few_enough(self, rounder: Callable[[slice], Rounded], rows: int) -> Bool[Tensor, "rows 1"]:
        """Return which rows hold no more outliers than the target rate allows."""
        (density,) = by_rows(lambda some: (rounder(some).density,), rows)
        if self.per == "matrix":
            density = density.mean().expand_as(density)
        return density <= self.outliers


def scaled(start: Float[Tensor, "rows groups"], exponent: Float[Tensor, "rows 1"]) -> Tensor:
    """Return start · 2^exponent as it would be stored."""
    return codes.round_step(start * 2**exponent)


def round_with_outliers(
    target: Float[Tensor, "rows n"],
    basis: Basis,
    step: Float[Tensor, "rows n"],
    limits: tuple[int, int],
) -> Rounded:
    """Run nearest plane with clipped codes; an outlier holds what clipping cut off, in float16."""
    columns, step = target.T.contiguous(), step.T.contiguous()
    code = torch.empty_like(columns, dtype=torch.int32)
    outlier = torch.zeros_like(columns, dtype=torch.float16)
    leaves = torch.empty_like(columns, dtype=torch.bool)

    def choose(j: int, best: Tensor) -> Tensor:
        wished = nearest_integer(best / step[j], None, None)
        nearest = wished.clamp(*limits)
        code[j] = nearest
        leaves[j] = wished != nearest
        value = nearest * step[j]
        outlier[j] = torch.where(leaves[j], best - value, 0).clamp(-LARGEST, LARGEST)
        return value + outlier[j]

    sweep(columns, basis.factor.to(target.dtype), choose)
    return Rounded(code.T.contiguous(), outlier.T, leaves.T)


def gather(rounded: Rounded, back: Tensor) -> Outliers:
    """Return the outliers as sparse rows on the original columns."""
    leaves, values = rounded.is_outlier[:, back], rounded.outlier[:, back]
    start = torch.zeros(len(leaves) + 1, dtype=torch.int32)
    start[1:] = leaves.sum(1).cumsum(0)
    return Outliers(start, leaves.nonzero()[:, 1].int(), values[leaves])

"""SSQR: nearest plane with clipped low-bit codes and a few sparse 16-bit outliers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float16, Int32
from torch import Tensor

from nearplane import codes
from nearplane.lattice import Basis, nearest_plane_with_outliers
from nearplane.lattice.float64 import widened
from nearplane.methods import fixed_width
from nearplane.methods.certificate import certify_rows, measure
from nearplane.methods.fixed_width import pack, quantized_weight
from nearplane.methods.method import LatticeMethod, OutOfRangeError, check_order, check_range
from nearplane.methods.steps import check_group_size, code_range, mse_steps
from nearplane.rows import by_rows, rows_at_once
from nearplane.types import Outliers, QuantizedWeight, spread

BISECTIONS = 10
FLOAT16_NORMAL = torch.finfo(torch.float16).smallest_normal
WIDENINGS = 6  # passes that may widen the bracket of log₂ κ before κ = 2^WIDENINGS is taken


@dataclass(frozen=True)
class Rounded:
    """The codes and outliers of some rows, in the basis's order of columns."""

    code: Int32[Tensor, "rows n"]
    outlier: Float16[Tensor, "rows n"]
    is_outlier: Bool[Tensor, "rows n"]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.code, self.outlier, self.is_outlier

    @property
    def density(self) -> Float[Tensor, "rows 1"]:
        """The fraction of each row's weights that are outliers."""
        return self.is_outlier.float().mean(1, keepdim=True)


@dataclass(frozen=True)
class SSQR(LatticeMethod):
    """Nearest plane with `bits`-bit codes; what clipping cuts off is stored as sparse outliers.

    value = step · code + outlier [Chen26, Alg. 9, 10]. The steps are κ times those of least error
    for all but a row's largest weights, which are expected to become its outliers.
    κ is found by bisection, as small as it can be with at most a fraction `outliers` of the weights
    clipped. Since outliers store what was clipped off, Theorem 5 still bounds every row.

    - `bits`: 2 to 8 per code.
    - `group_size`: columns that share a step; the whole row if it has no more columns.
    - `outliers`: the fraction of weights that may be outliers, 0.01 is 1 %; an upper limit.
    - `per`: whether the range is tightened row by row (`row`), or by one κ for all (`matrix`).

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

    def stored_bytes(self, rows: int, columns: int) -> float:
        return fixed_width.stored_bytes(rows, columns, self.bits, self.group_size, self.outliers)

    def quantize(self, weight: Float[Tensor, "rows columns"], basis: Basis) -> QuantizedWeight:
        group_size = check_group_size(self.group_size, weight.shape[1])
        start = mse_steps(without_largest(weight.float(), self.outliers), self.bits, group_size)
        step = self.search(weight, basis, start, group_size)
        rounder = self.rounder(weight, basis, step, group_size)
        at_once = rows_at_once(weight.shape[1], weight.device)
        parts = by_rows(lambda rows: rounder(rows).parts, len(weight), at_once=at_once)
        rounded = Rounded(*parts)
        invperm = basis.columns.argsort()
        code, outliers = rounded.code[:, invperm], sparse_outliers(rounded, invperm)
        wide = spread(step, group_size, weight.shape[1]).to(weight.dtype).expand_as(weight)
        value = code * wide
        outliers.add_to_(value)

        def sides(rows: slice) -> Tensor:
            return basis.factor.diagonal() * widened(wide[rows][:, basis.columns]).abs()

        losses = measure(weight, value.__getitem__, basis, sides)
        stored = pack(code, step, group_size, self.bits, outliers)
        certificate = certify_rows(losses)
        return quantized_weight(
            (code, step, group_size), stored, losses, certificate, basis, outliers
        )

    def rounder(
        self, weight: Tensor, basis: Basis, step: Float[Tensor, "rows groups"], group_size: int
    ) -> Callable[[slice], Rounded]:
        """Return the function that rounds some rows and keeps what is clipped off as outliers."""

        def rounded(rows: slice) -> Rounded:
            target = weight[rows]
            wide = spread(step[rows], group_size, target.shape[1]).to(target.dtype)
            wide = wide.expand_as(target)[:, basis.columns]
            columns, limits = target[:, basis.columns], code_range(self.bits)
            return Rounded(*nearest_plane_with_outliers(columns, basis.factor, wide, *limits))

        return rounded

    def search(
        self, weight: Tensor, basis: Basis, start: Float[Tensor, "rows groups"], group_size: int
    ) -> Float[Tensor, "rows groups"]:
        """Return the steps κ · start with the smallest κ found that makes few enough outliers.

        log₂ κ is bisected, starting from [−2, 2]. The number of outliers is not quite monotone in
        κ, so the smallest feasible κ seen is kept. If none was seen, κ = 2^WIDENINGS is used, which
        clips nothing unless a group is nearly zero.
        """
        low = torch.full((len(weight), 1), -2.0, device=weight.device)
        high, best = -low, torch.full_like(low, torch.nan)
        for _ in range(BISECTIONS + WIDENINGS):
            middle = torch.where(best.isnan() & (low > -2), high * 2, (low + high) / 2)
            rounder = self.rounder(weight, basis, scaled_steps(start, middle), group_size)
            few = self.few_enough(rounder, weight)
            smaller = few & (best.isnan() | (middle < best))
            best = torch.where(smaller, middle, best)
            low, high = (
                torch.where(few, low, middle),
                torch.where(few, middle, high.maximum(middle)),
            )
            if not best.isnan().any() and float((high - low).max()) < 4 / 2**BISECTIONS:
                break
        return scaled_steps(start, best.nan_to_num(float(WIDENINGS)))

    def few_enough(
        self, rounder: Callable[[slice], Rounded], weight: Float[Tensor, "rows columns"]
    ) -> Bool[Tensor, "rows 1"]:
        """Return which rows have at most the allowed fraction of outliers."""
        rows, at_once = len(weight), rows_at_once(weight.shape[1], weight.device)
        (density,) = by_rows(lambda part: (rounder(part).density,), rows, at_once=at_once)
        if self.per == "matrix":
            density = density.mean().expand_as(density)
        return density <= self.outliers


def without_largest(
    weight: Float[Tensor, "rows columns"], share: float
) -> Float[Tensor, "rows columns"]:
    """Return the weight with that share of every row, the largest in magnitude, set to 0.

    A step that spanned them would be wide for all of their group, and where the input is large,
    too, half of such a step is more error than the row's other columns can make up for. Weights
    that are too small for float16, in which outliers are stored, stay.
    """
    count = int(share * weight.shape[1])
    size, largest = weight.abs().topk(count, dim=1)
    kept = torch.where(size < FLOAT16_NORMAL, weight.gather(1, largest), 0.0)
    return weight.scatter(1, largest, kept)


def scaled_steps(start: Float[Tensor, "rows groups"], exponent: Float[Tensor, "rows 1"]) -> Tensor:
    """Return start · 2^exponent, rounded to what a record can store."""
    return codes.round_step(start * 2**exponent)


def sparse_outliers(rounded: Rounded, invperm: Tensor) -> Outliers:
    """Return the outliers as sparse rows in the original order of columns."""
    is_outlier, values = rounded.is_outlier[:, invperm], rounded.outlier[:, invperm]
    start = torch.zeros(len(is_outlier) + 1, dtype=torch.int32, device=is_outlier.device)
    start[1:] = is_outlier.sum(1).cumsum(0)
    return Outliers(start, is_outlier.nonzero()[:, 1].int(), values[is_outlier])

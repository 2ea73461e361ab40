"""Rate-aware nearest plane: each integer minimises squared error plus ν times code length."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float32, Float64, Int32, Int64
from torch import Tensor

from nearplane.lattice.float64 import widened
from nearplane.lattice.nearest_plane import scaled_factor, sweep, tiles, unit_factor
from nearplane.op import Op
from nearplane.rows import by_rows, rows_at_once, some_rows

HIGH_RATE_SLOPE = (
    0.11552453009332421  # 2 ln 2 / 12: the squared error, in squared steps, that one bit is worth
)


@dataclass(frozen=True)
class Prices:
    """Code lengths: integer z in row i, column j takes length[row[i] + column[j], z + span] bits.

    Elements with the same row[i] + column[j] share a context: one table of the entropy coder.

    - `length`: for z = −span .. span; integers beyond ±span cost what ±span costs.
    - `row`, `column`: their sum is the number of an element's context.
    - `slope`: ν, the Lagrange multiplier: the squared error, in squared steps, that one bit is
      worth. At high rate the distortion s²/12 falls by a factor of 4 for each bit, so
      ν = 2 ln 2 / 12 [Chou89].
    """

    length: Float32[Tensor, "contexts symbols"]
    row: Int64[Tensor, " rows"]
    column: Int64[Tensor, " n"]
    slope: float = HIGH_RATE_SLOPE

    @property
    def span(self) -> int:
        return self.length.shape[1] // 2

    def thresholds(self) -> Float32[Tensor, "contexts symbols_plus_one"]:
        """Return θ(z) for z = −span − 1 .. span: from z + θ(z) upwards, z + 1 costs less than z.

            θ(z) = ½ + ν (len(z + 1) − len(z)) / 2

        It is clipped to 0 .. 1, so that one of the two neighbours of the best value is chosen.
        """
        difference = torch.nn.functional.pad(self.length.diff(), (1, 1))
        return (0.5 + self.slope / 2 * difference).clamp_(0, 1)

    def of(self, rows: slice) -> "Prices":
        """Return the code lengths for some of the rows."""
        return replace(self, row=self.row[rows])

    def to(self, device: torch.device) -> "Prices":
        """Return them on a device."""
        parts = {name: getattr(self, name).to(device) for name in ("length", "row", "column")}
        return replace(self, **parts)

    def half_widths(self) -> Float64[Tensor, "rows n"]:
        """Return the largest |t − z| that each element can have, in steps.

        z is chosen for best values t in (z − 1 + θ(z − 1), z + θ(z)], so |t − z| is at most the
        larger of θ(z) and 1 − θ(z − 1), over all z. It is ½ where all code lengths are equal.
        """
        threshold = widened(self.thresholds())
        widest = torch.maximum(threshold, 1 - threshold).amax(1)
        return widest[(self.row[:, None] + self.column).to(widest.device)]


@Op
def rate_aware_plane(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "#rows n"],
    prices: Prices,
    unit: Float[Tensor, "n n"] | None = None,
) -> Int32[Tensor, "rows n"]:
    """Round every row of `target` to a nearby lattice point with a short code, last column first.

    Of the two integers around its best value t, column j takes the one that minimises

        (t − z)² + ν len(z).

    This is nearest plane's greedy step for ‖(target − step·code) @ factor.T‖² + Σ_j μ_j len(code_j)
    with μ_j = ν step_j² R_jj²; all μ_j are equal where R_jj step_j is the same for all columns.
    With ν = 0, or with equal code lengths, it is `nearest_plane` [Chou89, Babai86].

    - `step`: positive; one for each column, or the product of one for each row and column.
    - `unit`: what `unit_in_steps` returns for this factor and step, where several calls share it.
    """
    if unit is None:
        unit = unit_in_steps(factor, step, target.dtype)

    def rounded(rows: slice) -> tuple[Tensor]:
        parts = priced_tiles(target[rows], some_rows(step, rows), prices.of(rows))
        return (torch.cat([round_tile(t, unit, s, p) for t, s, p in parts]),)

    return by_rows(rounded, len(target), at_once=rows_at_once(target.shape[1], target.device))[0]


def unit_in_steps(
    factor: Float[Tensor, "n n"], step: Float[Tensor, "#rows n"], dtype: torch.dtype
) -> Float[Tensor, "n n"]:
    """Return the unit factor for rounding in steps: R_jk s_k / (R_jj s_j) above the diagonal."""
    return unit_factor(scaled_factor(factor, step[:1], dtype))


def priced_tiles(
    target: Float[Tensor, "rows n"], step: Float[Tensor, "#rows n"], prices: Prices
) -> Iterator[tuple[Tensor, Tensor, Prices]]:
    """Yield the tiles of a target, with the steps and code lengths of those rows."""
    first = 0
    for rows, row_steps in tiles(target, step):
        yield rows, row_steps, prices.of(slice(first, first + len(rows)))
        first += len(rows)


def round_tile(
    target: Float[Tensor, "rows n"],
    unit: Float[Tensor, "n n"],
    step: Float[Tensor, "#rows n"],
    prices: Prices,
) -> Int32[Tensor, "rows n"]:
    """Return the integers of one tile of rows, rounded with step 1 after division by the steps."""
    columns = (target / step.to(target.dtype)).T.contiguous()
    threshold, span = prices.thresholds().to(target.dtype), prices.span
    at_row = prices.row * threshold.shape[1] + span + 1
    at_column = (prices.column * threshold.shape[1]).tolist()
    code = torch.empty_like(columns)
    codes = code.unbind()

    def choose(j: int, best: Tensor) -> Tensor:
        below = torch.floor(best, out=codes[j])
        best.sub_(below)
        place = below.clamp(-span - 1, span).to(torch.int64).add_(at_row).add_(at_column[j])
        return below.add_(best > threshold.take(place))

    sweep(columns, unit, choose)
    return code.T.to(torch.int32, memory_format=torch.contiguous_format)


def rate_aware_plain(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "#rows n"],
    prices: Prices,
) -> Int32[Tensor, "rows n"]:
    """Return what `rate_aware_plane` returns; slower, and written to be read."""
    step, span = step.expand_as(target), prices.span
    code = torch.empty_like(target, dtype=torch.int32)
    error = torch.zeros_like(target)
    for j in reversed(range(target.shape[1])):
        pull = error[:, j + 1 :] @ (factor[j, j + 1 :] / factor[j, j])
        best = (target[:, j] + pull) / step[:, j]
        pair = torch.stack([best.floor(), best.floor() + 1])
        place = (pair.clamp(-span, span) + span).long()
        bits = prices.length[prices.row + prices.column[j], place]
        costs = (best - pair).square() + prices.slope * bits
        nearest = torch.where(costs[1] < costs[0], pair[1], pair[0])
        code[:, j] = nearest.to(torch.int32)
        error[:, j] = target[:, j] - step[:, j] * nearest
    return code


def cell_sides(
    factor: Float[Tensor, "n n"], step: Float[Tensor, "#rows n"], prices: Prices
) -> Float64[Tensor, "rows n"]:
    """Return 2 c_ij R_jj step_j: the sides of the box that a rate-aware residual lies in.

    c_ij is the largest distance between an element's best value and its integer
    (`Prices.half_widths`). ¼ Σ_j sides² then bounds a row's loss; with c = ½ this is the bound of
    [Chen26, Thm. 5].
    """
    return 2 * prices.half_widths() * widened(factor.diagonal()) * widened(step)

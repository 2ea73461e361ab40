"""K-best nearest plane: a beam search over each row's integers, known as the M-algorithm."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int32, Int64
from torch import Tensor

from nearplane.lattice.float64 import widened
from nearplane.lattice.nearest_plane import LEAF, unit_factor
from nearplane.lattice.rate_aware import Prices
from nearplane.op import Op
from nearplane.rows import by_rows, rows_at_once

BRANCHES = 2  # integers tried on each path: the two nearest to its best value


@dataclass(frozen=True)
class ScaledFactor:
    """The factor scaled by the steps, as a search needs it.

    - `unit`: R_jk s_k / (R_jj s_j) above the diagonal, 0 elsewhere.
    - `column_cost`: R_jj² s_j² of each column, divided by the mean.
    """

    unit: Float[Tensor, "n n"]
    column_cost: Float[Tensor, " n"]

    @classmethod
    def of(
        cls, factor: Float[Tensor, "n n"], step: Float[Tensor, "1 n"], dtype: torch.dtype
    ) -> "ScaledFactor":
        scaled = widened(factor) * widened(step)
        squared_pivot = scaled.diagonal().square()
        cost = (squared_pivot / squared_pivot.mean()).to(dtype)
        return cls(unit_factor(scaled).to(dtype), cost)


@Op
def k_best(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "1 n"],
    prices: Prices,
    paths: int,
    scaled: ScaledFactor | None = None,
) -> Int32[Tensor, "rows n"]:
    """Return the codes of the cheapest lattice point that a beam search finds for every row.

    A path is a choice of integers for the columns rounded so far. With t_j the best value of column
    j on that path, its cost is

        Σ_j R_jj² s_j² ((t_j − z_j)² + ν len(z_j)).

    At each column every path is continued by both neighbours of t_j, and the `paths` cheapest
    continuations are kept [Anderson84], of equal costs any. With one path this is
    `rate_aware_plane`.

    - `step`: positive, one for each column.
    - `scaled`: the `ScaledFactor` of this factor and step, where several calls share it.

    Cost: `paths` times that of `rate_aware_plane`; paths are rows of the same matrix products.
    """
    if scaled is None:
        scaled = ScaledFactor.of(factor, step, target.dtype)
    there = scaled.unit.device
    if there != target.device:
        # paths are compared by sums in float64: the search goes to where these are kept
        moved = target.to(there), factor, step.to(there), prices.to(there), paths
        return k_best(*moved, scaled).to(target.device)
    return searched(Beam, target, step, prices, paths, scaled)


def searched(
    beam_of: "type[Beam]",
    target: Float[Tensor, "rows n"],
    step: Float[Tensor, "1 n"],
    prices: Prices,
    paths: int,
    scaled: ScaledFactor,
) -> Int32[Tensor, "rows n"]:
    """Return what `k_best` returns, by a kind of `Beam`."""
    rows, n = target.shape
    if n == 0 or rows == 0:
        return torch.zeros_like(target, dtype=torch.int32)

    def rounded(part: slice) -> tuple[Tensor]:
        in_steps = (target[part] / step.to(target.dtype)).T.contiguous()
        beam = beam_of(in_steps, scaled.unit, scaled.column_cost, prices.of(part), paths)
        beam.solve(0, n)
        return (beam.cheapest(),)

    return by_rows(rounded, rows, at_once=rows_at_once(n * paths, target.device))[0]


@dataclass
class Beam:
    """The state of a K-best sweep; column j of row i on path k is at [j, i, k].

    - `target`: the rows to round, divided by their steps and transposed.
    - `unit`, `column_cost`: see `ScaledFactor`.
    - `best`: the target plus the corrections for the errors that were passed on so far.
    - `error`, `code`: of the columns rounded so far. `code` keeps the numbering that paths had when
      its block of columns was finished; `error` follows the current one.
    - `cost`: of every path; infinite for those that do not exist yet.
    - `history`: (first column, end, parent) of each finished block of columns; path k after the
      block continues path parent[:, k] before it.
    """

    target: Float[Tensor, "n rows"]
    unit: Float[Tensor, "n n"]
    column_cost: Float[Tensor, " n"]
    prices: Prices
    paths: int

    def __post_init__(self) -> None:
        n, rows = self.target.shape
        self.best = self.target[:, :, None].repeat(1, 1, self.paths)
        self.error = torch.zeros_like(self.best)
        self.code = torch.zeros_like(self.best, dtype=torch.int32)
        self.cost = self.best.new_full((rows, self.paths), torch.inf, dtype=torch.float64)
        self.cost[:, 0] = 0
        self.history: list[tuple[int, int, Int64[Tensor, "rows paths"]]] = []

    def solve(self, first: int, end: int) -> Int64[Tensor, "rows paths"]:
        """Round columns first .. end − 1; return which earlier path each path continues."""
        if end - first <= LEAF:
            return self.leaf(first, end)
        middle = end - max(LEAF, (end - first) // 2 // LEAF * LEAF)
        right_parent = self.solve(middle, end)
        left = self.best[first:middle]
        left.copy_(select_paths(left, right_parent))
        errors = self.error[middle:end].flatten(1)
        left.view(middle - first, -1).addmm_(self.unit[first:middle, middle:end], errors)
        left_parent = self.solve(first, middle)
        # the left half renumbered the paths: the right half's errors must follow
        self.error[middle:end] = select_paths(self.error[middle:end], left_parent)
        return right_parent.gather(1, left_parent)

    def leaf(self, first: int, end: int) -> Int64[Tensor, "rows paths"]:
        """Round at most LEAF columns, one after the other."""
        parent = torch.arange(self.paths, device=self.cost.device).expand_as(self.cost)
        errors = torch.zeros_like(self.best[first:end])
        codes = torch.zeros_like(errors)
        for j in reversed(range(first, end)):
            best = select_paths(self.best[j], parent)
            if j + 1 < end:
                pull = self.unit[j, j + 1 : end]
                best = best + torch.tensordot(pull, errors[j + 1 - first :], 1)
            code, continued = self.branch(j, best)
            parent = parent.gather(1, continued)
            done = slice(j + 1 - first, None)
            errors[done] = select_paths(errors[done], continued)
            codes[done] = select_paths(codes[done], continued)
            target = self.target[j][:, None]
            errors[j - first], codes[j - first] = target - code, code
        self.error[first:end] = errors
        self.code[first:end] = codes.to(torch.int32)
        self.history.append((first, end, parent))
        return parent

    def branch(
        self, j: int, best: Float[Tensor, "rows paths"]
    ) -> tuple[Float[Tensor, "rows paths"], Int64[Tensor, "rows paths"]]:
        """Return the cheapest continuations: an integer for column j, and the path continued."""
        below = best.floor()
        neighbours = torch.stack([below, below + 1], 2)
        span, prices = self.prices.span, self.prices
        context = prices.row[:, None, None] + prices.column[j]
        bits = prices.length[context, (neighbours.clamp(-span, span) + span).long()]
        added = (best[:, :, None] - neighbours).square() + prices.slope * bits
        total = (self.cost[:, :, None] + self.column_cost[j] * added.double()).flatten(1)
        self.cost, place = total.topk(self.paths, dim=1, largest=False)
        return neighbours.flatten(1).gather(1, place), place // BRANCHES

    def cheapest(self) -> Int32[Tensor, "rows n"]:
        """Return the codes of each row's cheapest path, following it back through `history`."""
        path = self.cost.argmin(1, keepdim=True)
        rows = self.target.shape[1]
        code = self.code.new_empty(rows, len(self.target))
        for first, end, parent in reversed(self.history):
            code[:, first:end] = (
                self.code[first:end].gather(2, path.expand(end - first, rows, 1))[:, :, 0].T
            )
            path = parent.gather(1, path)
        return code


def select_paths(matrix: Tensor, paths: Int64[Tensor, "rows paths"]) -> Tensor:
    """Return `matrix` with path paths[i, k] of row i in place of path k, along the last axis."""
    return matrix.gather(-1, paths.expand(matrix.shape))


def path_costs(
    target: Float[Tensor, "rows n"],
    code: Int32[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "1 n"],
    prices: Prices,
) -> Float64[Tensor, " rows"]:
    """Return ‖(target − step·code) @ factor.T‖² + ν Σ_j R_jj² s_j² len(code_j) of every row."""
    scaled = factor.double() * step.double()
    error = (target.double() / step.double() - code) @ scaled.T
    place = (code.clamp(-prices.span, prices.span) + prices.span).long()
    bits = prices.length[prices.row[:, None] + prices.column, place].double()
    squared_pivot = scaled.diagonal().square()
    return error.square().sum(1) + prices.slope * (bits * squared_pivot).sum(1)

"""K-best nearest plane: the M-algorithm keeps the K cheapest partial rows through the sweep."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int32, Int64
from torch import Tensor

from nearplane.lattice.nearest_plane import LEAF
from nearplane.lattice.rate_aware import Prices
from nearplane.lattice.threads import one_thread
from nearplane.rows import by_rows

BRANCHES = 2  # integers tried on each path: the two neighbours of its best value


def k_best(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "1 n"],
    prices: Prices,
    paths: int,
) -> Int32[Tensor, "rows n"]:
    """Return for every row the cheapest lattice point among `paths` that survive the sweep.

    A path is a choice of the columns done so far and costs, in squared pivots,

        Σ_j R_jj² s_j² ((t_j − z_j)² + ν len(z_j)).

    Each column tries both neighbours of t_j on every path and keeps the `paths` cheapest
    [Anderson84]. With one path this is `rate_aware_plane`. Paths stand side by side as rows, so
    the work between leaves is matrix products; a leaf costs `paths` times one path's.

    - `step`: positive, one a column.
    """
    rows, n = target.shape
    if n == 0 or rows == 0:
        return torch.zeros(rows, n, dtype=torch.int32)
    scaled = factor.double() * step.double()
    unit = (scaled / scaled.diagonal()[:, None]).triu_(1).to(target.dtype)
    weight = scaled.diagonal().square()
    weight = (weight / weight.mean()).to(target.dtype)

    def rounded(some: slice) -> tuple[Tensor]:
        lattice = (target[some] / step.to(target.dtype)).T.contiguous()
        beam = Beam(lattice, unit, weight, prices.of(some), paths)
        beam.solve(0, n)
        return (beam.cheapest(),)

    return by_rows(rounded, rows)[0]


@dataclass
class Beam:
    """A K-best sweep under way; column j of row i on path k stands at [j, i, k].

    - `best`: what each column should be, after the errors of the columns done.
    - `error`, `code`: of the columns done, in the order that paths had when their leaf ended.
    - `cost`: of every path; infinite for those that do not exist yet.
    - `ends`: what each leaf made of the paths, as (first column, end, came from).
    """

    target: Float[Tensor, "n rows"]
    unit: Float[Tensor, "n n"]
    weight: Float[Tensor, " n"]
    prices: Prices
    paths: int

    def __post_init__(self) -> None:
        n, rows = self.target.shape
        self.best = self.target[:, :, None].repeat(1, 1, self.paths)
        self.error = torch.zeros_like(self.best)
        self.code = torch.zeros(n, rows, self.paths, dtype=torch.int32)
        self.cost = torch.full((rows, self.paths), torch.inf, dtype=torch.float64)
        self.cost[:, 0] = 0
        self.ends: list[tuple[int, int, Int64[Tensor, "rows paths"]]] = []

    def solve(self, first: int, end: int) -> Int64[Tensor, "rows paths"]:
        """Decide columns first .. end − 1; returns which old path each new one continues."""
        if end - first <= LEAF:
            return self.leaf(first, end)
        middle = end - max(LEAF, (end - first) // 2 // LEAF * LEAF)
        right = self.solve(middle, end)
        left = self.best[first:middle]
        left.copy_(picked(left, right))
        made = self.error[middle:end].flatten(1)
        left.view(middle - first, -1).addmm_(self.unit[first:middle, middle:end], made)
        came = self.solve(first, middle)
        # the errors of the right half go where their paths went
        self.error[middle:end] = picked(self.error[middle:end], came)
        return right.gather(1, came)

    def leaf(self, first: int, end: int) -> Int64[Tensor, "rows paths"]:
        """Decide few columns, one after the other."""
        came = torch.arange(self.paths).expand_as(self.cost)
        errors = torch.zeros_like(self.best[first:end])
        codes = torch.zeros_like(errors)
        with one_thread():
            for j in reversed(range(first, end)):
                best = picked(self.best[j], came)
                if j + 1 < end:
                    pull = self.unit[j, j + 1 : end]
                    best = best + torch.tensordot(pull, errors[j + 1 - first :], 1)
                code, parent = self.branch(j, best)
                came = came.gather(1, parent)
                done = slice(j + 1 - first, None)
                errors[done] = picked(errors[done], parent)
                codes[done] = picked(codes[done], parent)
                wished = self.target[j][:, None]
                errors[j - first], codes[j - first] = wished - code, code
        self.error[first:end] = errors
        self.code[first:end] = codes.to(torch.int32)
        self.ends.append((first, end, came))
        return came

    def branch(
        self, j: int, best: Float[Tensor, "rows paths"]
    ) -> tuple[Float[Tensor, "rows paths"], Int64[Tensor, "rows paths"]]:
        """Return the integers of the cheapest continuations of column j, and their paths."""
        below = best.floor()
        both = torch.stack([below, below + 1], 2)
        span, prices = self.prices.span, self.prices
        context = prices.row[:, None, None] + prices.column[j]
        bits = prices.length[context, (both.clamp(-span, span) + span).long()]
        spent = (best[:, :, None] - both).square() + prices.slope * bits
        total = (self.cost[:, :, None] + self.weight[j] * spent.double()).flatten(1)
        self.cost, place = total.topk(self.paths, dim=1, largest=False)
        return both.flatten(1).gather(1, place), place // BRANCHES

    def cheapest(self) -> Int32[Tensor, "rows n"]:
        """Return the codes of each row's cheapest path, following it back through the leaves."""
        path = self.cost.argmin(1, keepdim=True)
        rows = self.target.shape[1]
        code = torch.empty(rows, len(self.target), dtype=torch.int32)
        for first, end, came in reversed(self.ends):
            code[:, first:end] = (
                self.code[first:end].gather(2, path.expand(end - first, rows, 1))[:, :, 0].T
            )
            path = came.gather(1, path)
        return code


def picked(of: Tensor, paths: Int64[Tensor, "rows paths"]) -> Tensor:
    """Return the paths chosen of the last axis."""
    return of.gather(-1, paths.expand(of.shape))


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
    weight = scaled.diagonal().square()
    return error.square().sum(1) + prices.slope * (bits * weight).sum(1)

"""The rate of Huffman-coded integers, and a prediction of the step that meets a rate."""

from dataclasses import dataclass
from math import ceil, log2

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from nearplane import codes
from nearplane.lattice.float64 import widened
from nearplane.op import Op
from nearplane.rows import RowsOf, cached_rows
from nearplane.types import NearplaneError

SAMPLE_WEIGHTS = 60_000  # integers that are enough to estimate a rate to 0.01 bit
TOLERANCE = 0.003  # bits per weight; a rate less than this under the target is accepted
MARGIN = 0.001  # error of the estimated rate: it omits two bits for each stream of 2048 codes
NORMAL_BITS = 2.047  # ½ log₂ 2πe: entropy of a standard normal distribution
PREDICTION_PASSES = 4  # corrections of the predicted scale
LARGEST_CODE = 2**20  # steps that need larger codes are not tried: float32 is exact up to 2^24


class RateError(NearplaneError):
    """No step meets the target rate; the message names the lowest rate that can be met if known."""


@dataclass(frozen=True)
class Budget:
    """The bits per weight that one matrix may take, and the rate of its record.

    The rate counts every stored byte, including the record's entry in the checkpoint file:

        rate = 8 (record + ENTRY_BYTES) / (rows · columns)

    - `steps`: how many steps the record stores.
    """

    bpw: float
    rows: int
    columns: int
    steps: int

    @property
    def weights(self) -> int:
        return self.rows * self.columns

    @property
    def target(self) -> float:
        """The middle of the range of estimated rates that are accepted, in bits per weight."""
        return self.bpw - MARGIN - TOLERANCE / 2

    def estimated_rate(self, code: Int32[Tensor, "some_rows columns"]) -> float:
        """Return the estimated rate of a matrix whose rows all have codes like these rows."""
        symbols, counts = histogram(code)
        share = self.weights / code.numel()
        scaled = np.maximum(1, np.rint(counts * share)).astype(np.int64)
        return self.rate_of_bytes(codes.price(symbols, scaled, self.steps))

    def rate_of_bytes(self, stored: int | float) -> float:
        """Return the rate of a record of `stored` bytes."""
        return 8 * (stored + codes.ENTRY_BYTES) / self.weights

    def check(self) -> None:
        """Raise RateError when even a matrix of zeros would have a higher rate than the target."""
        zeros = np.zeros(1, np.int64), np.array([self.weights])
        floor = self.rate_of_bytes(codes.price(*zeros, self.steps))
        if floor > self.bpw:
            raise RateError(
                f"{self.bpw:g} bits per weight cannot be met by a matrix of {self.rows} x "
                f"{self.columns}: the nearest that can is {ceil(floor * 100 + 1) / 100:g}"
            )


def first_scale(
    budget: Budget, scaled: Float[Tensor, "some_rows n"], pull: Float[Tensor, "some_rows n"] | None
) -> float:
    """Return a scale s of the steps that is predicted to meet the budget.

    It replaces nearest plane's integers by round(scaled / s + pull), which needs no sweep over the
    columns. Their rate falls by about one bit when s doubles. The first s comes from a normal
    distribution's entropy log₂ σ + ½ log₂ 2πe.

    - `scaled`: the weight divided by its steps at scale 1.
    - `pull`: from `drawn_pull`; None for round-to-nearest, which passes no errors on.
    """
    sigma = float(widened(scaled).square().mean().sqrt())
    if sigma == 0:
        return 1.0
    scale = sigma * 2 ** (NORMAL_BITS - budget.bpw)
    smallest_scale = float(scaled.abs().amax()) / LARGEST_CODE
    for _ in range(PREDICTION_PASSES):
        scale = max(scale, smallest_scale)
        best = scaled / scale if pull is None else scaled / scale + pull
        scale *= 2 ** (budget.estimated_rate(best.round_().int()) - budget.target)
    return max(scale, smallest_scale)


def drawn_pull(factor: Float[Tensor, "n n"], rows: int) -> Float[Tensor, "rows n"]:
    """Return random draws of the pull: what earlier errors add to a column's best value, in steps.

    With u and the errors U⁻¹u as in `drawn_errors`, the pull is u − U⁻¹u. This takes one triangular
    solve instead of a sweep over the columns.
    """
    return drawn_pull_by_rows(factor, rows)(slice(0, rows))


def drawn_pull_by_rows(factor: Float[Tensor, "n n"], rows: int) -> RowsOf:
    """Return the function that gives some rows of `drawn_pull`; it caches its results."""
    draws = torch.Generator().manual_seed(0)
    u = uniform_residuals(factor, rows, draws)

    def pull(rows: slice) -> Float[Tensor, "some_rows n"]:
        part = u[:, rows]
        errors = errors_from_residuals(factor, part)
        return (part - errors).T.clamp_(-LARGEST_CODE, LARGEST_CODE)

    return cached_rows(pull, rows)


def drawn_errors(
    factor: Float[Tensor, "n n"], rows: int, draws: torch.Generator
) -> Float[Tensor, "rows n"]:
    """Return random draws of the errors that nearest plane makes with step 1.

    Residuals are modelled as uniform in their box (`lattice.expected_loss`): with u uniform in
    (−½, ½)ⁿ and U = diag(R)⁻¹R, the errors are U⁻¹u.
    """
    return errors_from_residuals(factor, uniform_residuals(factor, rows, draws)).T


def uniform_residuals(factor: Tensor, rows: int, draws: torch.Generator) -> Float[Tensor, "n rows"]:
    """Return one random point of the box (−½, ½)ⁿ for each row."""
    return (
        torch.rand(len(factor), rows, generator=draws, dtype=factor.dtype, device=draws.device).to(
            factor.device
        )
        - 0.5
    )


def errors_from_residuals(
    factor: Float[Tensor, "n n"], residual: Float[Tensor, "n rows"]
) -> Float[Tensor, "n rows"]:
    """Return U⁻¹u, where U = diag(R)⁻¹R has a diagonal of ones."""
    unit = factor / factor.diagonal()[:, None]
    return torch.linalg.solve_triangular(unit, residual, upper=True, unitriangular=True)


@Op
def histogram(code: Int32[Tensor, "..."]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct integers in ascending order, and how often each occurs."""
    if code.device.type == "cpu":
        return codes.histogram(code.numpy().reshape(-1))
    return histogram_on_device(code)


def histogram_on_device(code: Int32[Tensor, "..."]) -> tuple[np.ndarray, np.ndarray]:
    """Return what `histogram` returns, by operators of the integers' device."""
    found, counts = torch.unique(code, return_counts=True)
    return found.cpu().numpy().astype(np.int64), counts.cpu().numpy()


def sample_rows(rows: int, columns: int) -> slice:
    """Return evenly spaced rows that are enough to estimate the rate of the whole matrix."""
    wanted = max(1, min(rows, ceil(max(SAMPLE_WEIGHTS, rows * columns / 20) / columns)))
    return slice(None, None, rows // wanted)


def headroom_bits(code: Int32[Tensor, "some_rows columns"]) -> float:
    """Return how many times the steps can be halved before a code reaches LARGEST_CODE."""
    largest = max(1, *(abs(int(x)) for x in code.aminmax()))
    return max(0.0, log2(LARGEST_CODE / largest))

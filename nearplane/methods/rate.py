"""What entropy-coded integers cost, and at what scale of their steps they should meet a rate."""

from dataclasses import dataclass
from math import ceil, log2

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from nearplane import codes
from nearplane.rows import RowsOf, kept
from nearplane.types import NearplaneError

SAMPLE_WEIGHTS = 60_000  # integers enough to know a rate to 0.01 bit
TOLERANCE = 0.003  # bits a weight under the target that are not worth another pass
MARGIN = 0.001  # what the likely rate may be too low by: two bits of size for each lane of 2048
NORMAL_BITS = 2.047  # ½ log₂ 2πe
MODEL_STEPS = 4
LARGEST = 2**20  # a code beyond which no step is made smaller: int32 and float32 end not far away


class RateError(NearplaneError):
    """No step meets the target; the message names the nearest rate that can be met."""


@dataclass(frozen=True)
class Budget:
    """What the record of one matrix may cost, and what it does cost.

    The rate counts every stored byte and the record's directory entry:

        rate = 8 (record + ENTRY_BYTES) / (rows · columns)
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
        """What to aim at: the middle of what counts as met."""
        return self.bpw - MARGIN - TOLERANCE / 2

    def likely_rate(self, code: Int32[Tensor, "some_rows columns"]) -> float:
        """Return about the bits a weight that a matrix with such codes in all its rows stores."""
        symbols, counts = histogram(code)
        share = self.weights / code.numel()
        scaled = np.maximum(1, np.rint(counts * share)).astype(np.int64)
        return self.of_bytes(codes.price(symbols, scaled, self.steps))

    def of_bytes(self, stored: int | float) -> float:
        """Return the rate of a record of so many bytes."""
        return 8 * (stored + codes.ENTRY_BYTES) / self.weights

    def check(self) -> None:
        """Raise RateError when even a matrix of zeros would store more than the target."""
        zeros = np.zeros(1, np.int64), np.array([self.weights])
        floor = self.of_bytes(codes.price(*zeros, self.steps))
        if floor > self.bpw:
            raise RateError(
                f"{self.bpw:g} bits per weight cannot be met by a matrix of {self.rows} x "
                f"{self.columns}: the nearest that can is {ceil(floor * 100 + 1) / 100:g}"
            )


def first_scale(
    budget: Budget, scaled: Float[Tensor, "some_rows n"], pull: Float[Tensor, "some_rows n"] | None
) -> float:
    """Return an s at which round(scaled / s + pull) meets the budget about.

    The rate model: integers are the weights' own plus the errors that nearest plane passes on
    (`expected_pull`); their rate falls by about a bit when s doubles. It starts from a normal
    distribution's entropy log₂ σ + ½ log₂ 2πe.
    """
    sigma = float(scaled.double().square().mean().sqrt())
    if sigma == 0:
        return 1.0
    scale = sigma * 2 ** (NORMAL_BITS - budget.bpw)
    finest = float(scaled.abs().amax()) / LARGEST
    for _ in range(MODEL_STEPS):
        scale = max(scale, finest)
        best = scaled / scale if pull is None else scaled / scale + pull
        scale *= 2 ** (budget.likely_rate(best.round_().int()) - budget.target)
    return max(scale, finest)


def expected_pull(factor: Float[Tensor, "n n"], rows: int) -> Float[Tensor, "rows n"]:
    """Return draws of what nearest plane's earlier errors add to a column, in steps.

    With the residual's u and the errors U⁻¹u of `drawn_errors`, the pull is u − U⁻¹u: a
    triangular solve in place of a sweep over the columns.
    """
    return expected_pulls(factor, rows)(slice(0, rows))


def expected_pulls(factor: Float[Tensor, "n n"], rows: int) -> RowsOf:
    """Return the function that gives some rows of `expected_pull`, solved for once."""
    draws = torch.Generator().manual_seed(0)
    u = residuals(factor, rows, draws)

    def pull(some: slice) -> Float[Tensor, "some_rows n"]:
        part = u[:, some]
        return (part - errors_of(factor, part)).T.clamp_(-LARGEST, LARGEST)

    return kept(pull)


def drawn_errors(
    factor: Float[Tensor, "n n"], rows: int, draws: torch.Generator
) -> Float[Tensor, "rows n"]:
    """Return draws of the errors that nearest plane leaves on the lattice of step 1.

    Residuals are uniform in a box (`lattice.expected_loss`): with u uniform in (−½, ½)ⁿ and the
    unit factor U = diag(R)⁻¹R, errors are U⁻¹u.
    """
    return errors_of(factor, residuals(factor, rows, draws)).T


def residuals(factor: Tensor, rows: int, draws: torch.Generator) -> Float[Tensor, "n rows"]:
    """Return points of (−½, ½)ⁿ, one for each row."""
    return torch.rand(len(factor), rows, generator=draws, dtype=factor.dtype) - 0.5


def errors_of(
    factor: Float[Tensor, "n n"], residual: Float[Tensor, "n rows"]
) -> Float[Tensor, "n rows"]:
    """Return U⁻¹u for the unit factor U = diag(R)⁻¹R."""
    unit = factor / factor.diagonal()[:, None]
    return torch.linalg.solve_triangular(unit, residual, upper=True, unitriangular=True)


def histogram(code: Int32[Tensor, "..."]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct integers, ascending, and how often each occurs."""
    return codes.histogram(code.numpy().reshape(-1))


def sample_rows(rows: int, columns: int) -> slice:
    """Return evenly spaced rows, enough to know the rate well."""
    wanted = max(1, min(rows, ceil(max(SAMPLE_WEIGHTS, rows * columns / 20) / columns)))
    return slice(None, None, rows // wanted)


def headroom(code: Int32[Tensor, "some_rows columns"]) -> float:
    """Return how often the steps may be halved before a code of these is LARGEST."""
    largest = max(1, *(abs(int(x)) for x in code.aminmax()))
    return max(0.0, log2(LARGEST / largest))

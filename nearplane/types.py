"""Types that all folders share: errors, progress, quantized weights and layer reports."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Float16, Float32, Float64, Int32, UInt8
from torch import Tensor

LONGEST_REMARK = 300  # characters of a library's error message that are shown


# called with the name of a step, and the share of it that is done: 0 .. 1
Progress = Callable[[str, float], None]


def no_progress(name: str, share: float) -> None:
    """Ignore the progress of a step."""


class NearplaneError(Exception):
    """A problem that one sentence explains; the command line prints it and exits with status 1."""


def first_line(error: Exception) -> str:
    """Return the first line of a library's error message, printable and not too long."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return (line if line.isprintable() else repr(line))[:LONGEST_REMARK]


@contextmanager
def naming_errors(part: str) -> Iterator[None]:
    """Turn any error of a library's or a model's code into a NearplaneError that names `part`."""
    try:
        yield
    # what runs out of an accelerator's memory may go on with less
    except (NearplaneError, torch.OutOfMemoryError):
        raise
    # code that is not ours may raise any error
    except Exception as error:
        raise NearplaneError(f"{part} failed: {type(error).__name__}: {first_line(error)}") from (
            error
        )


@dataclass(frozen=True)
class Outliers:
    """Sparse rows that are added to `step * code`: row i owns entries start[i] : start[i + 1]."""

    start: Int32[Tensor, " rows_plus_one"]
    column: Int32[Tensor, " count"]
    value: Float16[Tensor, " count"]

    def add_to_(self, dense: Float[Tensor, "rows columns"]) -> None:
        """Add every outlier to its place in `dense`."""
        count = len(self.start) - 1
        rows = torch.arange(count, device=dense.device).repeat_interleave(self.start.diff())
        dense.index_put_((rows, self.column.long()), self.value.to(dense.dtype), accumulate=True)


@dataclass(frozen=True)
class QuantizedWeight:
    """One linear layer's weight on a lattice, with its stored bytes and its error certificate.

    value = row_step · step · code − minimum + outliers

    - `step`: (1, 1) for the matrix, (1, columns) for columns, (rows, groups) for groups of
      `group_size` columns; the last group may be short.
    - `row_step`: factors of the rows, beside one step a column; None for 1.
    - `minimum`: of each group, beside its step; None for 0.
    - `record`: the bytes a checkpoint stores (docs/formats/record.md); `code_bytes` of them
      are codes.
    - `loss`: error · hessian · errorᵀ of each row, with the Hessian as given (undamped).
    - `damped_loss`: the same with the damped Hessian the codes were chosen under: what `bound`
      bounds.
    - `bound`: an upper bound of `damped_loss`, one number a row [Chen26, Thm. 5]; None if there
      is none, and then `void` says why.
    - `facts`: other numbers of the method, for the report.
    """

    code: Int32[Tensor, "rows columns"]
    step: Float[Tensor, "step_rows step_columns"]
    group_size: int
    outliers: Outliers | None
    record: UInt8[Tensor, " bytes"]
    code_bytes: int
    loss: Float64[Tensor, " rows"]
    damped_loss: Float64[Tensor, " rows"]
    bound: Float64[Tensor, " rows"] | None
    void: str = ""
    facts: dict[str, float] = field(default_factory=dict)
    row_step: Float32[Tensor, "rows 1"] | None = None
    minimum: Float32[Tensor, "rows groups"] | None = None

    def value(self) -> Float[Tensor, "rows columns"]:
        """Return the weight that is stored, in float32 or the wider type of `step`."""
        parts = self.code, self.step, self.group_size, self.outliers
        return value(*parts, self.row_step, self.minimum)

    @property
    def bpw(self) -> float:
        """Bits per weight of everything stored: codes, steps, tables, offsets, headers."""
        return 8 * len(self.record) / self.code.numel()

    @property
    def code_bpw(self) -> float:
        """Bits per weight of the codes alone."""
        return 8 * self.code_bytes / self.code.numel()

    def noting(self, **facts: float) -> "QuantizedWeight":
        """Return the same weight with more facts for the report."""
        return replace(self, facts=self.facts | facts)


@dataclass(frozen=True)
class LayerReport:
    """The entry of one layer in report and certificate; sums are over its rows.

    - `loss`: Σ error · hessian · errorᵀ, undamped; `damped_loss`: the same, damped.
    - `energy`: Σ weight · hessian · weightᵀ, so loss / energy is the output's relative error.
    - `bound`: upper bound of `damped_loss`; None if there is none, and then `void` says why.
    - `weight_error`: ‖weight − value‖², which can be checked without calibration.
    - `fallback`: why the layer was rounded to nearest, or on borrowed tokens as well
      (walk/expert_hessians.py); empty if neither.
    - `log2_pivots`: log₂ R_jj of the basis at evenly spaced quantiles, least first; only in
      report.json.
    """

    name: str
    method: str
    rows: int
    columns: int
    stored_bytes: int
    bpw: float
    code_bpw: float
    loss: float
    damped_loss: float
    energy: float
    bound: float | None
    void: str
    weight_error: float
    tokens: int
    dropped_tokens: int
    dead_columns: int
    seconds: float
    fallback: str = ""
    facts: dict[str, float] = field(default_factory=dict)
    log2_pivots: list[float] = field(default_factory=list)


def value(
    code: Int32[Tensor, "rows columns"],
    step: Float[Tensor, "step_rows step_columns"],
    group_size: int,
    outliers: Outliers | None,
    row_step: Float[Tensor, "rows 1"] | None = None,
    minimum: Float[Tensor, "rows groups"] | None = None,
) -> Float[Tensor, "rows columns"]:
    """Return the weights that codes stand for, in the type of `step`.

    (row_step · step) · code − minimum + outliers, rounded after each operation.
    """
    wide = spread(step, group_size, code.shape[1])
    dense = code * wide if row_step is None else (row_step * wide).mul_(code)
    if minimum is not None:
        dense -= spread(minimum, group_size, code.shape[1])
    if outliers is not None:
        outliers.add_to_(dense)
    return dense


def spread(
    step: Float[Tensor, "step_rows step_columns"], group_size: int, columns: int
) -> Float[Tensor, "step_rows broadcast_columns"]:
    """Return stored steps in a shape that broadcasts to (rows, columns)."""
    if step.shape[1] in (1, columns):
        return step
    return step.repeat_interleave(group_size, dim=1)[:, :columns]

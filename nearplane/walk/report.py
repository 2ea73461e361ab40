"""What the walk reports of a layer: its certificate, and why it was rounded as it was."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from nearplane.lattice.float64 import widened
from nearplane.methods import Method
from nearplane.model.blocks import Layer
from nearplane.rows import by_rows
from nearplane.types import LayerReport, QuantizedWeight
from nearplane.walk.expert_hessians import ENOUGH
from nearplane.walk.input_statistics import InputStatistics

TO_NEAREST = "rounded to nearest"  # how `void` begins for a layer that fell back to this
QUANTILES = 17  # of a layer's pivots, the least and the largest among them
PIVOT_DIGITS = 3  # behind the point of a log₂


@dataclass(frozen=True)
class Measured:
    """What the walk knows of a layer beside its weights; `fallback` as in `LayerReport`.

    - `pivots`: R_jj of the basis that it was rounded on; None for the identity's.
    """

    inputs: InputStatistics
    fallback: str
    seconds: float
    pivots: Float64[Tensor, " n"] | None = None


def report_of(
    layer: Layer,
    method: Method,
    original: Float[Tensor, "rows columns"],
    quantized: QuantizedWeight,
    measured: Measured,
) -> LayerReport:
    """Return what the report and the certificate say of a layer."""
    bound = quantized.facts.get("layer_bound")
    if bound is None and quantized.bound is not None and not quantized.bound.isnan().any():
        bound = float(quantized.bound.sum())
    energy, error = energy_and_error(original, quantized.value(), measured.inputs.hessian)
    borrowed = 0 if measured.fallback else measured.inputs.borrowed
    void = f"{TO_NEAREST}: {measured.fallback}" if measured.fallback else quantized.void
    return LayerReport(
        name=layer.name,
        method=method.name,
        rows=original.shape[0],
        columns=original.shape[1],
        stored_bytes=len(quantized.record),
        bpw=quantized.bpw,
        code_bpw=quantized.code_bpw,
        loss=float(quantized.loss.sum()),
        damped_loss=float(quantized.damped_loss.sum()),
        energy=energy,
        bound=None if measured.fallback else bound,
        void=void,
        weight_error=error,
        tokens=measured.inputs.tokens,
        dropped_tokens=measured.inputs.dropped,
        dead_columns=int((measured.inputs.hessian.diagonal() == 0).sum()),
        seconds=measured.seconds,
        fallback=measured.fallback or borrowing(measured.inputs),
        facts=quantized.facts | ({"borrowed": float(borrowed)} if borrowed else {}),
        log2_pivots=[] if measured.pivots is None else log2_quantiles(measured.pivots),
    )


def energy_and_error(
    original: Float[Tensor, "rows n"], value: Float[Tensor, "rows n"], hessian: Float[Tensor, "n n"]
) -> tuple[float, float]:
    """Return Σ original · hessian · originalᵀ and ‖original − value‖², a few rows at a time."""

    def of_rows(rows: slice) -> tuple[Tensor, Tensor]:
        some = original[rows]
        energy = widened((some @ hessian) * some).sum(1)
        return energy, (widened(some) - widened(value[rows])).square().sum(1)

    energy, error = by_rows(of_rows, len(original))
    return float(energy.sum()), float(error.sum())


def log2_quantiles(pivots: Float64[Tensor, " n"]) -> list[float]:
    """Return log₂ of the pivots at QUANTILES evenly spaced quantiles, least first."""
    ranks = torch.linspace(0, 1, QUANTILES, dtype=torch.float64, device=pivots.device)
    found = pivots.double().log2().sort().values
    at = ranks * (len(found) - 1)
    low, high = found[at.floor().long()], found[at.ceil().long()]
    return [round(each, PIVOT_DIGITS) for each in (low + (high - low) * at.frac()).tolist()]


def borrowing(inputs: InputStatistics) -> str:
    """Return why a Hessian is not of a layer's own tokens alone; "" if it is."""
    if not inputs.borrowed:
        return ""
    return (
        f"{inputs.tokens} tokens for {len(inputs.hessian)} columns are less than "
        f"{ENOUGH * len(inputs.hessian)}: the Hessian counts "
        f"{inputs.borrowed} of the whole layer, too"
    )

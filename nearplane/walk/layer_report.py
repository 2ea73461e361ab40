"""What the report and the certificate say of a layer."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nearplane.methods import Method
from nearplane.model.blocks import Layer
from nearplane.types import LayerReport, QuantizedWeight
from nearplane.walk.expert_hessians import ENOUGH
from nearplane.walk.input_statistics import Seen

TO_NEAREST = "rounded to nearest"  # how a report begins to say that there was no lattice


@dataclass(frozen=True)
class Measured:
    """What the walk knows of a layer beside its weights."""

    seen: Seen
    fallback: str
    seconds: float


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
    energy = ((original @ measured.seen.hessian) * original).sum(dtype=torch.float64)
    error = original.double() - quantized.value().double()
    borrowed = 0 if measured.fallback else measured.seen.borrowed
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
        energy=float(energy),
        bound=None if measured.fallback else bound,
        void=void,
        weight_error=float(error.square().sum()),
        tokens=measured.seen.tokens,
        dropped_tokens=measured.seen.dropped,
        dead_columns=int((measured.seen.hessian.diagonal() == 0).sum()),
        seconds=measured.seconds,
        fallback=measured.fallback or few_tokens(measured.seen),
        facts=quantized.facts | ({"borrowed": float(borrowed)} if borrowed else {}),
    )


def few_tokens(seen: Seen) -> str:
    """Return why a Hessian is not of a layer's own tokens alone; "" if it is."""
    if not seen.borrowed:
        return ""
    return (
        f"{seen.tokens} tokens for {len(seen.hessian)} columns are less than "
        f"{ENOUGH * len(seen.hessian)}: the Hessian counts {seen.borrowed} of the whole layer, too"
    )

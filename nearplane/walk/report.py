"""What is reported of a run: every layer's certificate, the totals, the calibration, the time."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nearplane.methods import Method
from nearplane.model.blocks import Layer
from nearplane.types import LayerReport, QuantizedWeight
from nearplane.walk.expert_hessians import ENOUGH
from nearplane.walk.input_statistics import InputStatistics

FORMAT = 1
TO_NEAREST = "rounded to nearest"  # how `void` begins for a layer that fell back to this


@dataclass(frozen=True)
class Measured:
    """What the walk knows of a layer beside its weights; `fallback` as in `LayerReport`."""

    inputs: InputStatistics
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
    energy = ((original @ measured.inputs.hessian) * original).sum(dtype=torch.float64)
    error = original.double() - quantized.value().double()
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
        energy=float(energy),
        bound=None if measured.fallback else bound,
        void=void,
        weight_error=float(error.square().sum()),
        tokens=measured.inputs.tokens,
        dropped_tokens=measured.inputs.dropped,
        dead_columns=int((measured.inputs.hessian.diagonal() == 0).sum()),
        seconds=measured.seconds,
        fallback=measured.fallback or borrowing(measured.inputs),
        facts=quantized.facts | ({"borrowed": float(borrowed)} if borrowed else {}),
    )


def borrowing(inputs: InputStatistics) -> str:
    """Return why a Hessian is not of a layer's own tokens alone; "" if it is."""
    if not inputs.borrowed:
        return ""
    return (
        f"{inputs.tokens} tokens for {len(inputs.hessian)} columns are less than "
        f"{ENOUGH * len(inputs.hessian)}: the Hessian counts "
        f"{inputs.borrowed} of the whole layer, too"
    )


@dataclass(frozen=True)
class Bits:
    """Where the bytes of a model are: in quantized weights, or in everything else.

    - `other_bytes`, `other_numbers`: tensors kept as they were (embeddings, norms, biases).
    """

    quantized_bytes: int
    quantized_weights: int
    other_bytes: int
    other_numbers: int

    @property
    def bpw(self) -> float:
        """Bits per quantized weight, all that their records store."""
        return 8 * self.quantized_bytes / max(self.quantized_weights, 1)

    @property
    def bpw_of_file(self) -> float:
        """Bits per number of the whole model."""
        numbers = self.quantized_weights + self.other_numbers
        return 8 * (self.quantized_bytes + self.other_bytes) / max(numbers, 1)

    def for_json(self) -> dict[str, Any]:
        return asdict(self) | {"bpw": self.bpw, "bpw_of_file": self.bpw_of_file}


def count_bits(layers: Sequence[LayerReport], other_bytes: int, other_numbers: int) -> Bits:
    """Return the bits of quantized layers and of the tensors beside them."""
    return Bits(
        quantized_bytes=sum(layer.stored_bytes for layer in layers),
        quantized_weights=sum(layer.rows * layer.columns for layer in layers),
        other_bytes=other_bytes,
        other_numbers=other_numbers,
    )


def layer_row(layer: LayerReport) -> dict[str, Any]:
    """Return a layer's report as JSON with ratios added; None where a ratio has no value."""
    row = asdict(layer)
    row["relative_loss"] = relative_loss(row)
    row["loss_over_bound"] = ratio(layer.damped_loss, layer.bound)
    return row | {"relative_bound": ratio(layer.bound, layer.energy)}


def relative_loss(entry: Mapping[str, Any]) -> float | None:
    """Return loss / energy of a layer's report or certificate; None where that means nothing."""
    return None if is_nearest(entry) else ratio(entry.get("loss"), entry.get("energy"))


def is_nearest(entry: Mapping[str, Any]) -> bool:
    """Whether a layer fell back to round-to-nearest, not only to borrowed tokens.

    Its loss is then computed with the identity, its energy with the Hessian: not comparable.
    """
    facts = entry.get("facts") or {}
    return bool(entry.get("fallback")) and "borrowed" not in facts


def few_token_sentences(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for the experts of every layer that were rounded on borrowed tokens, too.

    - `entries`: reports or certificates of layers by name.
    """
    found: dict[str, dict[str, float]] = {}
    for name, entry in entries.items():
        # certificates may come from a stranger's checkpoint
        parts = name.rsplit(".", 2)
        if "borrowed" in (entry.get("facts") or {}) and len(parts) == 3:
            found.setdefault(parts[0], {})[parts[1]] = entry.get("tokens") or 0
    return [
        f"{experts}: {len(few)} experts had few tokens of their own and borrowed from all of their "
        f"layer: {', '.join(f'{expert} ({tokens})' for expert, tokens in few.items())}"
        for experts, few in found.items()
    ]


def ratio(over: int | float | None, under: int | float | None) -> float | None:
    """Return over / under, or None where that is no number."""
    if over is None or not under or not isfinite(over / under):
        return None
    return over / under


def run_report(
    layers: Sequence[LayerReport],
    bits: Bits,
    recipe: dict[str, Any],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Return report.json: the recipe, totals and one row a layer.

    - `facts`: other entries: seconds, what was left out, which layers fell back.
    """
    bounded = [layer for layer in layers if layer.bound is not None]
    measured = [layer for layer in layers if not is_nearest(vars(layer))]
    energy = sum((layer.energy for layer in measured), 0.0)
    return {
        "report_version": FORMAT,
        "recipe": recipe,
        "bits": bits.for_json(),
        "certified_layers": len(bounded),
        "relative_loss": ratio(sum((layer.loss for layer in measured), 0.0), energy),
        "loss_over_bound": ratio(
            sum((layer.damped_loss for layer in bounded), 0.0),
            sum((layer.bound or 0.0 for layer in bounded), 0.0),
        ),
        **facts,
        "layers": [layer_row(layer) for layer in layers],
    }

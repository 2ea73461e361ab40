"""The account of a whole run: every layer, the totals, the calibration and the time."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from nearplane.types import LayerReport

FORMAT = 1


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
    """Return a layer's report with the ratios that people look for; None where there is none."""
    row = asdict(layer)
    row["relative_loss"] = relative_loss(row)
    row["loss_over_bound"] = ratio(layer.damped_loss, layer.bound)
    return row | {"relative_bound": ratio(layer.bound, layer.energy)}


def relative_loss(entry: Mapping[str, Any]) -> float | None:
    """Return loss / energy of a layer's report or certificate; None where that means nothing."""
    return None if is_nearest(entry) else ratio(entry.get("loss"), entry.get("energy"))


def is_nearest(entry: Mapping[str, Any]) -> bool:
    """Whether a layer fell back to round-to-nearest: its loss is not under its energy's Hessian.

    One that fell back to a Hessian with borrowed tokens has both under that.
    """
    facts = entry.get("facts") or {}
    return bool(entry.get("fallback")) and "borrowed" not in facts


def few_tokens(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for the experts of every layer that were rounded on borrowed tokens, too.

    - `entries`: reports or certificates of layers by name.
    """
    found: dict[str, dict[str, float]] = {}
    for name, entry in entries.items():
        # a certificate may be anybody's
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
    said: dict[str, Any],
) -> dict[str, Any]:
    """Return report.json: the recipe, totals and one row a layer.

    - `said`: what else the run has to say: seconds, what was left out, which layers fell back.
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
        **said,
        "layers": [layer_row(layer) for layer in layers],
    }

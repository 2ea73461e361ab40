"""What report.json holds of a run: every layer's certificate, totals, calibration, time."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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


@dataclass
class Kept:
    """Counts what is stored as it was: numbers and bytes by name, block numbers as "*"."""

    sums: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, name: str, numbers: int, nbytes: int) -> None:
        """Count one tensor."""
        masked = masked_numbers(name)
        before = self.sums.get(masked, (0, 0))
        self.sums[masked] = before[0] + numbers, before[1] + nbytes

    def for_json(self) -> dict[str, Any]:
        """Return {name: {"numbers": ..., "bytes": ...}}, the largest first."""
        found = self.largest_first().items()
        return {name: {"numbers": count, "bytes": size} for name, (count, size) in found}

    def largest_first(self) -> dict[str, tuple[int, int]]:
        """Return name -> (numbers, bytes)."""
        return dict(sorted(self.sums.items(), key=lambda item: -item[1][1]))


def masked_numbers(name: str) -> str:
    """Return a tensor's name with "*" for every part that is a number, as that of a block."""
    return re.sub(r"\b[0-9]+\b", "*", name)


def count_bits(layers: Sequence[LayerReport], kept: Kept) -> Bits:
    """Return the bits of quantized layers and of the tensors beside them."""
    sums = kept.sums.values()
    return Bits(
        quantized_bytes=sum(layer.stored_bytes for layer in layers),
        quantized_weights=sum(layer.rows * layer.columns for layer in layers),
        other_bytes=sum(size for _, size in sums),
        other_numbers=sum(numbers for numbers, _ in sums),
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
    kept: Kept,
    recipe: dict[str, Any],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Return report.json: the recipe, totals and one row a layer.

    - `kept`: what is stored as it was.
    - `facts`: other entries: seconds, what was left out, which layers fell back.
    """
    bounded = [layer for layer in layers if layer.bound is not None]
    measured = [layer for layer in layers if not is_nearest(vars(layer))]
    energy = sum((layer.energy for layer in measured), 0.0)
    return {
        "report_version": FORMAT,
        "recipe": recipe,
        "bits": count_bits(layers, kept).for_json(),
        "kept": kept.for_json(),
        "certified_layers": len(bounded),
        "relative_loss": ratio(sum((layer.loss for layer in measured), 0.0), energy),
        "loss_over_bound": ratio(
            sum((layer.damped_loss for layer in bounded), 0.0),
            sum((layer.bound or 0.0 for layer in bounded), 0.0),
        ),
        **facts,
        "layers": [layer_row(layer) for layer in layers],
    }

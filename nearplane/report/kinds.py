"""Sums over the layers of a kind, and what a file's bytes are used for."""

from dataclasses import dataclass
from statistics import median

from nearplane.report.layer_lines import LayerLine
from nearplane.report.reading import Run

REST = "all that is stored as it was"


@dataclass(frozen=True)
class Kind:
    """The layers of one kind together; losses are None where none is known.

    - `least_bpw`, `most_bpw`: of single layers. `worst`: the layer of `most_loss`.
    """

    name: str
    layers: list[LayerLine]
    stored_bytes: int
    weights: int
    least_bpw: float
    most_bpw: float
    median_loss: float | None
    most_loss: float | None
    worst: str

    @property
    def bpw(self) -> float:
        """Bits per weight of all of them."""
        return 8 * self.stored_bytes / self.weights


@dataclass(frozen=True)
class Part:
    """A part of the weight files: a kind of layers, or tensors that are stored as they were."""

    name: str
    numbers: int
    stored_bytes: int
    is_quantized: bool


def kinds(layers: list[LayerLine]) -> list[Kind]:
    """Return the kinds of layers, in the order in which they first come."""
    found: dict[str, list[LayerLine]] = {}
    for layer in layers:
        found.setdefault(layer.kind, []).append(layer)
    return [kind(name, each) for name, each in found.items()]


def kind(name: str, layers: list[LayerLine]) -> Kind:
    """Return the sums over some layers."""
    known = [(each.relative_loss, each.name) for each in layers if each.relative_loss is not None]
    most, worst = max(known, default=(None, ""))
    return Kind(
        name=name,
        layers=layers,
        stored_bytes=sum(each.stored_bytes for each in layers),
        weights=sum(each.weights for each in layers),
        least_bpw=min(each.bpw for each in layers),
        most_bpw=max(each.bpw for each in layers),
        median_loss=median(loss for loss, _ in known) if known else None,
        most_loss=most,
        worst=worst,
    )


def parts(run: Run) -> list[Part]:
    """Return what the bytes of all tensors are used for, the largest part first."""
    found = [Part(k.name, k.weights, k.stored_bytes, True) for k in kinds(run.layers)]
    kept = run.kept or {REST: (run.other_numbers, run.other_bytes)}
    found += [Part(name, count, size, False) for name, (count, size) in kept.items() if size]
    return sorted(found, key=lambda part: -part.stored_bytes)

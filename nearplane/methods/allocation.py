"""Bit allocation: each layer's rate, so that the total divergence of a model is least."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2

from nearplane.types import NearplaneError

LOWEST, HIGHEST = 1.25, 12.0  # limits of a layer's rate, in bits per weight
BISECTIONS = 60
NOISE_FLOOR = 1e-12  # nats; smaller divergences are replaced by it


@dataclass(frozen=True)
class Sensitivity:
    """How much rounding one layer alone, at a known rate, changes the model's predictions.

    - `divergence`: KL divergence from the original model in nats, with the layer rounded at `bpw`.
    - `weights`: how many the layer has.
    - `floor`: the lowest rate, in bits per weight, at which the layer's shape can be stored.
    """

    divergence: float
    weights: int
    bpw: float
    floor: float = 0.0


def allocate(sensitivities: Mapping[str, Sensitivity], bpw: float) -> dict[str, float]:
    """Return the bits per weight of each layer that minimise the total divergence at average `bpw`.

    The divergence of layer l at b_l bits is modelled as c_l 4^(−b_l), and divergences add up. At
    the minimum, one more stored bit lowers the total by the same amount in every layer:

        b_l = ½ log₂(c_l / n_l) + constant

    for layers of n_l weights, clipped to LOWEST .. HIGHEST and to the floor of a layer's shape.

    Raises NearplaneError when no allocation has this average.
    """
    total = sum(layer.weights for layer in sensitivities.values())
    floors = {name: max(LOWEST, layer.floor) for name, layer in sensitivities.items()}
    unclipped = {
        name: layer.bpw + log2(max(layer.divergence, NOISE_FLOOR) / layer.weights) / 2
        for name, layer in sensitivities.items()
    }

    def bits(shift: float) -> dict[str, float]:
        return {n: max(min(b + shift, HIGHEST), floors[n]) for n, b in unclipped.items()}

    def mean(shift: float) -> float:
        return sum(b * sensitivities[n].weights for n, b in bits(shift).items()) / total

    low, high = -max(unclipped.values()), HIGHEST - min(unclipped.values())
    if mean(low) > bpw:
        raise NearplaneError(
            f"{bpw:g} bits per weight cannot be met: the layers need at least {mean(low):.2f} on "
            "average"
        )
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) <= bpw else (low, middle)
    return bits(low)


def predicted_divergence(
    sensitivities: Mapping[str, Sensitivity], bits: Mapping[str, float]
) -> float:
    """Return the total divergence at these bits per weight: Σ_l c_l 4^(−b_l), in nats a token."""
    found = sensitivities.items()
    return sum(layer.divergence * 4 ** (layer.bpw - bits[name]) for name, layer in found)


def allocation_sentence(bits: dict[str, float], divergence: float | None) -> str:
    """Return the allocation in one line: the range of every kind of layer, and what is expected."""
    kinds: dict[str, list[float]] = {}
    for name, rate in bits.items():
        kinds.setdefault(name.rsplit(".", 1)[-1], []).append(rate)
    ranges = (f"{kind} {min(r):.2f} .. {max(r):.2f}" for kind, r in kinds.items())
    said = ", ".join(ranges) if divergence is not None else "no layer could be probed"
    expected = "" if divergence is None else f"; predicted KL {divergence:.3g} nats a token"
    return f"bits per weight by equal slope: {said}{expected}"

"""Allocation: one budget for a model, split so that a bit is worth the same in every layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2

from nearplane.types import NearplaneError

LOWEST, HIGHEST = 1.25, 12.0  # bits a weight that a layer may be given
HALVINGS = 60
LEAST = 1e-12  # nats below which a divergence is noise


@dataclass(frozen=True)
class Sensitivity:
    """What one layer does to the model: the divergence it sensitivities at a known rate.

    - `divergence`: KL to the original model, in nats, with this layer alone rounded at `bpw`.
    - `floor`: the fewest bits per weight that a record of the layer's shape can take.
    """

    divergence: float
    weights: int
    bpw: float
    floor: float = 0.0


def allocate(sensitivities: Mapping[str, Sensitivity], bpw: float) -> dict[str, float]:
    """Return bits per weight by layer, on average `bpw`, of least total divergence.

    A layer's divergence falls by the factor 4 a bit, c_l 4^(−b_l), and divergences add up; equal
    slopes then mean

        b_l = ½ log₂(c_l / n_l) + constant,

    inside LOWEST .. HIGHEST, and not below the floor of a layer's shape.

    Raises NearplaneError when no allocation has this mean.
    """
    total = sum(cause.weights for cause in sensitivities.values())
    floors = {name: max(LOWEST, cause.floor) for name, cause in sensitivities.items()}
    wishes = {
        name: cause.bpw + log2(max(cause.divergence, LEAST) / cause.weights) / 2
        for name, cause in sensitivities.items()
    }

    def bits(shift: float) -> dict[str, float]:
        return {n: max(min(wish + shift, HIGHEST), floors[n]) for n, wish in wishes.items()}

    def mean(shift: float) -> float:
        return sum(b * sensitivities[n].weights for n, b in bits(shift).items()) / total

    low, high = -max(wishes.values()), HIGHEST - min(wishes.values())
    if mean(low) > bpw:
        raise NearplaneError(
            f"{bpw:g} bits per weight cannot be met: the layers need at least {mean(low):.2f} on "
            "average"
        )
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) <= bpw else (low, middle)
    return bits(low)

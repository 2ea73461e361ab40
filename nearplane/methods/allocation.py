"""Bit allocation: each layer's rate, so that the total divergence of a model is least."""

import heapq
from collections.abc import Callable, Iterable, Mapping
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
    - `columns`: of the layer.
    """

    divergence: float
    weights: int
    bpw: float
    floor: float = 0.0
    columns: int = 0


def shared_out(
    sensitivities: Mapping[str, Sensitivity],
    bpw: float,
    rates_of: Callable[[int], Mapping[float, float] | None] = lambda columns: None,
) -> tuple[dict[str, float], float]:
    """Return each layer's bits per weight at average `bpw`, and the divergence that is expected.

    - `rates_of`: the rates that a layer of so many columns may have, see `allocate_among`; None for
      any.

    Raises NearplaneError when no allocation has this average.
    """
    rates = {name: rates_of(layer.columns) for name, layer in sensitivities.items()}
    few = {name: each for name, each in rates.items() if each is not None}
    bits = allocate_among(sensitivities, bpw, few) if few else allocate(sensitivities, bpw)
    return bits, sum(predicted_divergences(sensitivities, bits, rates_of).values())


def predicted_at(
    sensitivities: Mapping[str, Sensitivity],
    bpw: Iterable[float],
    rates_of: Callable[[int], Mapping[float, float] | None] = lambda columns: None,
) -> list[tuple[float, float]]:
    """Return (bits per weight, expected divergence) of every average that can be met.

    Each is shared out anew, so this is what a smaller or a larger file would have.
    """
    found = []
    for each in bpw:
        try:
            found.append((each, shared_out(sensitivities, each, rates_of)[1]))
        except NearplaneError:
            continue
    return found


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


def allocate_among(
    sensitivities: Mapping[str, Sensitivity],
    bpw: float,
    rates: Mapping[str, Mapping[float, float]],
) -> dict[str, float]:
    """Return the bits per weight of each layer, one of its own few rates, at average `bpw`.

    Every layer begins at its lowest rate. Then, again and again, the one whose next rate lowers the
    total divergence most for each stored bit gets that, as long as the average allows it.

    - `rates`: of each layer, and at what rate errors as large have a divergence of c_l 4^(−rate).

    Raises NearplaneError when even the lowest rates are above the average.
    """
    ladder = {name: sorted(rates[name].items()) for name in sensitivities}
    place = dict.fromkeys(sensitivities, 0)
    stored = sum(ladder[name][0][0] * each.weights for name, each in sensitivities.items())
    total = bpw * sum(each.weights for each in sensitivities.values())
    if stored > total * (1 + 1e-9):
        lowest = stored / sum(each.weights for each in sensitivities.values())
        raise NearplaneError(
            f"{bpw:g} bits per weight cannot be met: the layers need at least {lowest:.2f} on "
            "average"
        )

    def push(name: str) -> None:
        """Put the best next rate that the average allows on the heap, by its gain for each bit."""
        layer, steps = sensitivities[name], ladder[name][place[name] :]
        now, equal_now = steps[0]
        options = []
        for ahead, (rate, equal) in enumerate(steps[1:], 1):
            bits = (rate - now) * layer.weights
            gain = layer.divergence * (4 ** (layer.bpw - equal_now) - 4 ** (layer.bpw - equal))
            if stored + bits <= total:
                options.append((-max(gain, NOISE_FLOOR) / bits, name, bits, place[name] + ahead))
        if options:
            heapq.heappush(heap, min(options))

    heap: list[tuple[float, str, float, int]] = []
    for name in place:
        push(name)
    while heap:
        _, name, bits, at = heapq.heappop(heap)
        if stored + bits <= total:
            stored, place[name] = stored + bits, at
        push(name)
    return {name: ladder[name][place[name]][0] for name in sensitivities}


def predicted_divergences(
    sensitivities: Mapping[str, Sensitivity],
    bits: Mapping[str, float],
    rates_of: Callable[[int], Mapping[float, float] | None] = lambda columns: None,
) -> dict[str, float]:
    """Return each layer's divergence at these bits per weight: c_l 4^(−b_l), in nats a token."""
    found = {}
    for name, layer in sensitivities.items():
        rates, rate = rates_of(layer.columns), bits[name]
        equal = rate if rates is None else rates[rate]
        found[name] = layer.divergence * 4 ** (layer.bpw - equal)
    return found


def allocation_sentence(bits: dict[str, float], divergence: float | None) -> str:
    """Return the allocation in one line: the range of every kind of layer, and what is expected."""
    kinds: dict[str, list[float]] = {}
    for name, rate in bits.items():
        kinds.setdefault(name.rsplit(".", 1)[-1], []).append(rate)
    ranges = (f"{kind} {min(r):.2f} .. {max(r):.2f}" for kind, r in kinds.items())
    said = ", ".join(ranges) if divergence is not None else "no layer could be probed"
    expected = "" if divergence is None else f"; predicted KL {divergence:.3g} nats a token"
    return f"bits per weight by equal slope: {said}{expected}"

"""Charts of one line for the terminal: a character for every block, higher for larger numbers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log10
from statistics import mean

from nearplane.report.kinds import Kind
from nearplane.report.layer_lines import LayerLine

BARS = "▁▂▃▄▅▆▇█"
PLAIN = ".:-=+*#@"  # where a terminal has no block characters
NOTHING = " "  # of a block without such a layer

Field = Callable[[LayerLine], float | None]


@dataclass(frozen=True)
class Strip:
    """A kind of layers as one line: its name, the characters, the least and the largest number."""

    kind: str
    characters: str
    least: float
    most: float


def strips(
    kinds: Sequence[Kind], field: Field, width: int, logarithmic: bool, bars: str = BARS
) -> list[Strip]:
    """Return a line for every kind of layers that lie in blocks, all on one scale.

    - `field`: a layer's number, None where it is unknown. `logarithmic`: of numbers above 0.
    - `width`: at most so many characters; with more blocks, each stands for several.
    """
    found = {kind.name: by_block(kind.layers, field, logarithmic) for kind in kinds}
    found = {name: values for name, values in found.items() if values}
    every = [value for values in found.values() for value in values.values()]
    blocks = 1 + max((block for values in found.values() for block in values), default=0)
    apart = -(-blocks // max(width, 1))

    def level(value: float) -> str:
        low, high = scaled(min(every)), scaled(max(every))
        share = (scaled(value) - low) / (high - low) if high > low else 0.0
        return bars[min(int(share * len(bars)), len(bars) - 1)]

    def scaled(value: float) -> float:
        return log10(value) if logarithmic else value

    def line(values: dict[int, float]) -> str:
        bins = [
            [values[block] for block in range(first, first + apart) if block in values]
            for first in range(0, blocks, apart)
        ]
        # an error must not vanish among its neighbours
        joined = max if logarithmic else mean
        return "".join(level(joined(each)) if each else NOTHING for each in bins)

    return [
        Strip(name, line(values), min(values.values()), max(values.values()))
        for name, values in found.items()
    ]


def by_block(layers: Iterable[LayerLine], field: Field, logarithmic: bool) -> dict[int, float]:
    """Return block -> the mean of its layers' numbers; of a logarithmic field the largest."""
    found: dict[int, list[float]] = {}
    for layer in layers:
        value = field(layer)
        if layer.block is not None and value is not None and (value > 0 or not logarithmic):
            found.setdefault(layer.block, []).append(value)
    joined = max if logarithmic else mean
    return {block: joined(values) for block, values in found.items()}

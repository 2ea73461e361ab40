"""Several sources of calibration text, each with a share of the sequences."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from nearplane.types import NearplaneError

WEIGHTED = re.compile(r"(.+):([0-9]+(?:\.[0-9]+)?)")


@dataclass(frozen=True)
class Sources:
    """Sources, and their weights: of n sequences, source i gives about n · wᵢ / Σ w.

    - `weights`: name of a file, directory or data set -> a number above 0.

    Raises NearplaneError for no sources, or for a weight that is no such number.
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.weights:
            raise NearplaneError("there is no source of calibration text")
        for source, weight in self.weights.items():
            if not isinstance(weight, int | float) or not 0 < weight < float("inf"):
                raise NearplaneError(f"the weight of {source} must be above 0, not {weight}")

    @classmethod
    def of(cls, sources: Sequence[str | Path]) -> "Sources":
        """Return the sources that are written as SOURCE or SOURCE:WEIGHT; a weight unsaid is 1.

        Raises NearplaneError for a source that is named twice.
        """
        parsed = [weighted(str(source)) for source in sources]
        names = [str(Path(name).resolve()) if Path(name).exists() else name for name, _ in parsed]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise NearplaneError(f"the calibration names {twice} twice: give it a weight instead")
        return cls(dict(parsed))

    def name(self) -> str:
        """Return the sources and weights in one line."""
        return ", ".join(f"{source}:{weight:g}" for source, weight in self.weights.items())

    def sequences(self, count: int) -> dict[str, int]:
        """Return how many of `count` sequences each source gives: at least one, the most fit."""
        total = sum(self.weights.values())
        shares = {source: count * weight / total for source, weight in self.weights.items()}
        found = {source: max(1, int(share)) for source, share in shares.items()}
        rest = max(0, count - sum(found.values()))
        for source in sorted(shares, key=lambda s: found[s] - shares[s])[:rest]:
            found[source] += 1
        return found


def weighted(source: str) -> tuple[str, float]:
    """Return a source and its weight, of SOURCE:WEIGHT; a file of that whole name has weight 1."""
    parts = WEIGHTED.fullmatch(source)
    file, colon, weight = source.rpartition(":")
    if parts is None and colon and Path(file).is_file() and not Path(source).exists():
        raise NearplaneError(f"the weight of {file} must be a number above 0, not {weight!r}")
    if parts is None or Path(source).exists():
        return source, 1.0
    return parts[1], float(parts[2])


def as_sources(text: Any) -> Any:
    """Return several paths, or a dictionary of weights, as `Sources`; anything else as it is."""
    if isinstance(text, Mapping):
        return Sources({str(source): weight for source, weight in text.items()})
    if not isinstance(text, list | tuple) or not text or not all(isinstance(p, Path) for p in text):
        return text
    paths = list(text)
    return Sources.of(paths) if len(paths) > 1 else paths[0]


def interleaved(parts: list[Int64[Tensor, "_ length"]]) -> Int64[Tensor, "n length"]:
    """Return the sequences of all parts, each part spread evenly over the whole."""
    places = torch.cat([(torch.arange(len(p), device="cpu") + 0.5) / len(p) for p in parts])
    return torch.cat(parts)[places.argsort(stable=True)]

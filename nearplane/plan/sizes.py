"""Sums over a model's layers and stages to which the work of a run is proportional."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from operator import attrgetter
from typing import Any, NamedTuple

from nearplane.methods.rate import SAMPLE_WEIGHTS
from nearplane.model.blocks import Layer
from nearplane.plan.method_launches import Started
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import Survey
from nearplane.rows import TILE
from nearplane.walk.expert_hessians import ENOUGH, borrowed
from nearplane.walk.hessian import NARROW, STRIPES
from nearplane.walk.walk import BATCH_TOKENS

GRAM_SHARE = (STRIPES + 1) / (2 * STRIPES)  # of the full product that a wide Hessian's sum takes


class Kind(NamedTuple):
    """The properties on which a layer's cost depends; a stage has those of its first layer.

    - `alone`: whether it is the only one of its stage.
    - `expert`: whether it belongs to an expert. `share`: the share of all tokens that it gets.
    """

    rows: int
    columns: int
    alone: bool
    expert: bool
    share: int | float

    @property
    def size(self) -> int | float:
        return float(self.rows) * self.columns**2


OfKind = Callable[[Kind], Any]
size_of, rows_of = attrgetter("size"), attrgetter("rows")


def weights_of(kind: Kind) -> int:
    """Return the weights of a layer of this kind."""
    return kind.rows * kind.columns


@dataclass(frozen=True)
class Sizes:
    """Sums over a model's layers and stages to which the work is proportional."""

    survey: Survey
    run: RunSize

    def kind(self, layer: Layer, alone: bool = False) -> Kind:
        expert = layer.name in self.survey.shares
        return Kind(*layer.shape, alone, expert, self.survey.share(layer))

    @cached_property
    def layers(self) -> Counter[Kind]:
        return Counter(map(self.kind, self.survey.layers))

    @cached_property
    def stages(self) -> Counter[Kind]:
        return Counter(self.kind(stage[0], len(stage) == 1) for stage in self.survey.stages)

    @cached_property
    def hidden(self) -> int:
        widest = max(kind.columns for kind in self.layers)
        return self.survey.number("hidden_size", widest)

    @property
    def blocks(self) -> int:
        return self.survey.number("num_hidden_layers", 1)

    @property
    def streams(self) -> int:
        return 2 if self.survey.method.compensates else 1

    @property
    def state_bytes(self) -> int | float:
        """Bytes of the hidden states between two blocks, of all streams and tokens."""
        return self.streams * self.run.tokens * self.hidden * self.survey.compute.itemsize

    def rows_by_squares(self, drifted: bool = False) -> int | float:
        """Return Σ rows · n²; `drifted`: without layers of experts."""
        kinds = self.layers.items()
        return sum(count * kind.size for kind, count in kinds if not (drifted and kind.expert))

    def busiest(self, amount: OfKind, things: OfKind, grain: int = TILE) -> float:
        """Return the largest share of Σ amount that one process has.

        - `things`: how many of a layer's rows or weights are divided, in whole grains.
        """
        kinds = self.layers.items()
        parts = [
            (n * amount(kind), max(self.run.of_rows(things(kind), grain))) for kind, n in kinds
        ]
        return sum(part * share for part, share in parts) / sum(part for part, _ in parts)

    @property
    def drifted(self) -> int:
        """How many weights are rounded towards targets: all but those of experts."""
        kinds = self.layers.items()
        return sum(n * kind.rows * kind.columns for kind, n in kinds if not kind.expert)

    @property
    def inside(self) -> float:
        """The share of the model's numbers that is in its blocks."""
        numbers = sum(parameter.numel() for parameter in self.survey.blocks.parameters())
        return numbers / (self.survey.quantized + self.survey.unquantized)

    def moments(self, stage: Kind) -> tuple[int | float, int | float]:
        """Return the flops per token of a stage's sums, and how many numbers these sums hold."""
        n = stage.columns
        gram = 2 * n**2 * (GRAM_SHARE if n > NARROW else 1)
        if not self.survey.method.compensates or stage.expert:
            return gram, n**2
        # one sum more where the output of a single layer is added to hidden states
        lag = stage.rows * n if stage.alone and stage.rows == self.hidden else 0
        return gram + 2 * n**2 + 2 * lag, 2 * (2 * n**2 + lag)

    def hessian_flops(self) -> int | float:
        tokens = self.run.tokens
        return sum(
            count * self.moments(stage)[0] * tokens * stage.share
            for stage, count in self.stages.items()
        )

    def summed(self) -> int | float:
        """Return the numbers in all sums."""
        return sum(count * self.moments(stage)[1] for stage, count in self.stages.items())

    def lent_flops(self) -> tuple[int | float, int | float]:
        """Return the flops of forward passes and sums for experts that few tokens reach."""
        forward = sums = 0.0
        for stage, count in self.stages.items():
            n = stage.columns
            own = round(self.run.tokens * stage.share)
            if stage.expert and stage.rows == self.hidden and borrowed(own, n):
                tokens = count * min(ENOUGH * n, self.run.tokens)
                forward += 4 * tokens * stage.rows * n  # gate and up
                sums += self.moments(stage)[0] * tokens
        return forward, sums

    def factors(self, again: int = 0) -> int | float:
        """Return the flops of one factor a stage, and of `again` more where inputs drift."""
        return sum(
            count * stage.columns**3 / 3 * (1 if stage.expert else 1 + again)
            for stage, count in self.stages.items()
        )

    def sampled(self) -> int | float:
        """Return how many weights are in the samples that predict rates (`methods/rate.py`)."""
        kinds = ((kind.rows * kind.columns, count) for kind, count in self.layers.items())
        return sum(count * min(n, max(SAMPLE_WEIGHTS, n / 20)) for n, count in kinds)

    @property
    def batches(self) -> int:
        """How many forward passes all tokens take."""
        return ceil(self.run.sequences / max(1, BATCH_TOKENS // self.run.length))

    def passed(self, passes: int | float, tokens: int | float) -> dict[str, int | float]:
        """Return what forward passes through all blocks start, and move for their products.

        Weights are read in every pass; inputs are read and outputs written for every token.
        """
        survey = self.survey
        states = sum(n * kind.share * (kind.rows + kind.columns) for kind, n in self.layers.items())
        moved = survey.compute.itemsize * (passes * survey.active + tokens * states)
        return {"moved_bytes": moved, "launches": passes * survey.launches}

    def started(self, of_layer: Callable[[int, int], Started]) -> dict[str, int | float]:
        """Return the sum over all layers of what `of_layer` says for their rows and columns."""
        found = [of_layer(kind.rows, kind.columns).times(n) for kind, n in self.layers.items()]
        launches, moved = Started.sum(found)
        return {"moved_bytes": moved, "launches": launches}

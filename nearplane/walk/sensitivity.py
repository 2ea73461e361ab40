"""Probing: how far the model's predictions move when one layer is rounded, by forward passes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from nearplane.lattice import NotPositiveDefiniteError
from nearplane.methods import Method
from nearplane.methods.allocation import Sensitivity
from nearplane.model.blocks import Layer
from nearplane.model.output_head import output_head
from nearplane.types import Progress, no_progress
from nearplane.walk.capture import Call, calls_of_blocks
from nearplane.walk.expert_hessians import BlockExperts
from nearplane.walk.hidden_states import HiddenStates
from nearplane.walk.input_statistics import sum_inputs
from nearplane.walk.placement import Placement
from nearplane.walk.streams import Streams
from nearplane.walk.trace import ModelTrace, head_inputs

Error = tuple[Layer, Tensor]  # as (out, in)

HESSIAN_TOKENS = 2048  # that give the shape of a layer's error
SEQUENCES, LENGTH = 2, 128  # whose predictions are compared
POSITIONS = 32  # of each of them at most, evenly spaced
DRAWN_BPW = 3.0  # the rate at which errors are drawn; divergence is in proportion to their power


@dataclass
class Probe:
    """A model whose layers are disturbed one at a time, before any is rounded.

    The experts of a layer are disturbed together, first all gates, then all up projections and so
    on: they get one rate, as the few tokens that come to each would not tell them apart. A layer's
    error is drawn as nearest plane would leave it at DRAWN_BPW: uniform in the box of
    its lattice, from the Hessian of a few tokens. The rest of the model stays as it is.
    """

    placement: Placement
    trace: ModelTrace
    method: Method
    tokens: Int64[Tensor, "n length"]
    wanted: set[str]
    progress: Progress = no_progress
    draws: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    calls: dict[int, list[Call]] = field(default_factory=dict)

    @cached_property
    def units(self) -> dict[str, str]:
        """Layer to quantize -> what it shares a rate with: itself, or its kind in all experts."""
        return {
            layer.name: layer.name if stage.among is None else kind_of(layer)
            for stages in self.trace.stages
            for stage in stages
            for layer in stage.layers
            if layer.name in self.wanted
        }

    @torch.no_grad()
    def sensitivities(self) -> dict[str, Sensitivity]:
        """Return what every unit of wanted layers does to the model, which stays as it was."""
        with self.placement.outside():
            return dict(self.probed())

    def probed(self) -> Iterator[tuple[str, Sensitivity]]:
        """Go through the blocks once, and take along what was disturbed in earlier ones."""
        calls = self.calls_on(self.tokens[: max(1, HESSIAN_TOKENS // self.tokens.shape[1])])
        self.asked = self.tokens[-SEQUENCES:, :LENGTH]
        hidden, state = calls[0].hidden, self.copies(1)[0].hidden
        units: list[list[list[Layer]]] = []
        states = self.placement.hidden_states()
        for index, block in enumerate(self.trace.blocks):
            with self.placement.block(index):
                call = calls[index].on(hidden)
                disturbed = [
                    ([layer for layer, _ in errors], self.block_output(index, state, errors))
                    for errors in self.together(index, call)
                ]
                states = self.further(index, states)
                if disturbed:
                    units.append([layers for layers, _ in disturbed])
                    states.append(torch.cat([output for _, output in disturbed]))
                hidden, state = call.run(block), self.copies(1)[index].on(state).run(block)
            # every block adds copies that the later ones run on
            self.progress("probing the layers", ((index + 1) / len(self.trace.blocks)) ** 2)
        reference = self.predictions(self.asked, state)
        for number, layers in enumerate(units):
            yield from self.compared(layers, states[number], reference)

    def further(self, index: int, states: HiddenStates) -> HiddenStates:
        """Return what block `index` makes of the states of several copies of what is asked."""
        made = self.placement.hidden_states()
        for number in range(len(states)):
            hidden = states[number]
            call = self.copies(len(hidden) // len(self.asked))[index]
            made.append(call.on(hidden).run(self.trace.blocks[index]))
        return made

    def together(self, index: int, call: Call) -> Iterator[list[Error]]:
        """Yield what is disturbed at once: a layer, or those of one kind of all experts."""
        units: dict[str, list[Error]] = {}
        for layer, error in self.errors(index, call):
            unit = self.units[layer.name]
            if unit == layer.name:
                yield [(layer, error)]
            else:
                # they wait for each other, in memory
                narrow = error.to(layer.weight().dtype)
                units.setdefault(unit, []).append((layer, narrow))
        yield from units.values()

    def errors(self, index: int, call: Call) -> Iterator[Error]:
        """Yield every wanted layer of a block with an error such as rounding it would leave."""
        stages = [
            stage
            for stage in self.trace.stages[index]
            if any(layer.name in self.wanted for layer in stage.layers)
        ]
        streams = Streams.of(self.trace, index, stages, [lambda: call])
        experts, device = BlockExperts(streams), self.placement.device
        for stage in stages:
            lender = experts.tokens_of(stage)
            # a layer that is called again is judged by the first call
            seen = sum_inputs(
                stage.layers[0].shape[1], islice(streams.given(stage), 1), device=device
            )
            seen = lender.blended(stage, seen) if lender else seen
            if not (seen.tokens or seen.borrowed):
                continue
            try:
                basis = self.method.basis(seen.hessian)
            except NotPositiveDefiniteError:
                continue
            for layer in stage.layers:
                if layer.name in self.wanted:
                    weight = layer.weight().detach().float()
                    yield layer, self.method.drawn_error(weight, basis, DRAWN_BPW, self.draws)
        streams.finish()

    def block_output(self, index: int, hidden: Tensor, errors: list[Error]) -> Tensor:
        """Return the block's hidden states with some layers disturbed."""
        weights = [layer.module.weight.data for layer, _ in errors]
        try:
            for layer, error in errors:
                layer.assign(layer.weight().detach().float() + error)
            return self.copies(1)[index].on(hidden).run(self.trace.blocks[index])
        finally:
            for (layer, _), weight in zip(errors, weights, strict=True):
                layer.module.weight.data = weight

    def compared(
        self, units: list[list[Layer]], hidden: Tensor, reference: list[Tensor]
    ) -> Iterator[tuple[str, Sensitivity]]:
        """Yield the divergence that each of a block's disturbed outputs ends in."""
        many = self.predictions(self.asked.repeat(len(units), 1), hidden)
        for index, layers in enumerate(units):
            found = many[index * len(reference) : (index + 1) * len(reference)]
            floor = max(self.method.floor(*layer.shape) for layer in layers)
            weights = sum(layer.weight().numel() for layer in layers)
            unit = self.units[layers[0].name]
            yield unit, Sensitivity(divergence(reference, found), weights, DRAWN_BPW, floor)

    def copies(self, count: int) -> list[Call]:
        """Return the calls of all blocks on `count` copies of what is asked."""
        if count not in self.calls:
            self.calls[count] = self.calls_on(self.asked.repeat(count, 1))
        return self.calls[count]

    def calls_on(self, tokens: Int64[Tensor, "n length"]) -> list[Call]:
        """Return the calls of all blocks on some tokens."""
        return calls_of_blocks(self.placement.model, self.trace.blocks, self.trace.tuples, tokens)

    def predictions(self, tokens: Tensor, hidden: Tensor) -> list[Tensor]:
        """Return the log-probabilities at the compared positions, sequence by sequence."""
        model: Any = self.placement.model
        given = head_inputs(model, self.trace, output_head(model), tokens, hidden)
        head = model.get_output_embeddings()
        return [
            torch.log_softmax(head(sequence.contiguous()).float(), -1)
            for sequence in given[:, compared_of(given.shape[1])]
        ]


def compared_of(length: int) -> slice:
    """Return the positions of a sequence that are compared."""
    apart = -(-length // POSITIONS)
    return slice(apart - 1, None, apart)


def kind_of(layer: Layer) -> str:
    """Return what the layers of one kind of all experts are called together."""
    experts, _, kind = layer.name.rsplit(".", 2)
    return f"{experts}.{kind}"


def divergence(reference: list[Tensor], found: list[Tensor]) -> float:
    """Return the mean over positions of Σ p (log p − log q), in nats."""
    total = 0.0
    for p, q in zip(reference, found, strict=True):
        total += float((p.exp() * (p - q)).sum())
    return max(total / sum(map(len, reference)), 0.0)

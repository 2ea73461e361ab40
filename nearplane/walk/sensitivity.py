"""How sensitive the model's predictions are to the rounding of each layer, by forward passes."""

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

Error = tuple[Layer, Tensor]  # a layer, and an error of its weight as (out, in)

HESSIAN_TOKENS = 2048  # for the Hessians from which the layers' errors are drawn
SEQUENCES, LENGTH = 2, 128  # sequences whose predictions are compared, and tokens of each
POSITIONS = 32  # most predictions of a sequence that are compared, evenly spaced
DRAWN_BPW = 3.0  # the rate at which errors are drawn; divergence is in proportion to their power


@dataclass
class Probe:
    """Adds a rounding error to one layer at a time, and compares the model's predictions.

    The error is drawn at random, as nearest plane would leave it at DRAWN_BPW: uniform in the box
    of the layer's lattice, with the Hessian of a few tokens. The experts of a mixture are disturbed
    together, first all gates, then all up projections and so on, and get one rate: too few tokens
    reach each expert to measure them one by one.

    - `wanted`: the names of the layers to measure.
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
        """Layer -> its unit, which gets one rate: the layer, or its kind in all experts."""
        return {
            layer.name: layer.name if stage.mixture is None else kind_of(layer)
            for stages in self.trace.stages
            for stage in stages
            for layer in stage.layers
            if layer.name in self.wanted
        }

    @torch.no_grad()
    def sensitivities(self) -> dict[str, Sensitivity]:
        """Return how sensitive the model is to every unit of layers; it is left as it was."""
        with self.placement.outside():
            return dict(self.probed())

    def probed(self) -> Iterator[tuple[str, Sensitivity]]:
        """Run the blocks once, on the original states and on those that earlier errors gave."""
        calls = self.calls_on(self.tokens[: max(1, HESSIAN_TOKENS // self.tokens.shape[1])])
        self.compared_tokens = self.tokens[-SEQUENCES:, :LENGTH]
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
        reference = self.predictions(self.compared_tokens, state)
        for number, layers in enumerate(units):
            yield from self.compared(layers, states[number], reference)

    def further(self, index: int, states: HiddenStates) -> HiddenStates:
        """Return the outputs of block `index` on disturbed states."""
        outputs = self.placement.hidden_states()
        for number in range(len(states)):
            hidden = states[number]
            call = self.copies(len(hidden) // len(self.compared_tokens))[index]
            outputs.append(call.on(hidden).run(self.trace.blocks[index]))
        return outputs

    def together(self, index: int, call: Call) -> Iterator[list[Error]]:
        """Yield the errors added at a time: of one layer, or of all experts' layers of one kind."""
        units: dict[str, list[Error]] = {}
        for layer, error in self.errors(index, call):
            unit = self.units[layer.name]
            if unit == layer.name:
                yield [(layer, error)]
            else:
                # errors of all experts are in memory at once: in the weights' type
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
            tokens = experts.tokens_of(stage)
            # a layer that is called again is judged by the first call
            inputs = sum_inputs(
                stage.layers[0].shape[1], islice(streams.given(stage), 1), device=device
            )
            inputs = tokens.blended(stage, inputs) if tokens else inputs
            if not (inputs.tokens or inputs.borrowed):
                continue
            try:
                basis = self.method.basis(inputs.hessian)
            except NotPositiveDefiniteError:
                continue
            for layer in stage.layers:
                if layer.name in self.wanted:
                    weight = layer.weight().detach().float()
                    yield layer, self.method.drawn_error(weight, basis, DRAWN_BPW, self.draws)
        streams.finish()

    def block_output(self, index: int, hidden: Tensor, errors: list[Error]) -> Tensor:
        """Return the block's hidden states with some layers disturbed."""
        weights = [layer.stored.data for layer, _ in errors]
        try:
            for layer, error in errors:
                layer.assign(layer.weight().detach().float() + error)
            return self.copies(1)[index].on(hidden).run(self.trace.blocks[index])
        finally:
            for (layer, _), weight in zip(errors, weights, strict=True):
                layer.stored.data = weight

    def compared(
        self, units: list[list[Layer]], hidden: Tensor, reference: list[Tensor]
    ) -> Iterator[tuple[str, Sensitivity]]:
        """Yield each unit's name, and the divergence of the predictions that its error leads to."""
        many = self.predictions(self.compared_tokens.repeat(len(units), 1), hidden)
        for index, layers in enumerate(units):
            found = many[index * len(reference) : (index + 1) * len(reference)]
            floor = max(self.method.floor(*layer.shape) for layer in layers)
            weights = sum(layer.weight().numel() for layer in layers)
            unit = self.units[layers[0].name]
            yield unit, Sensitivity(divergence(reference, found), weights, DRAWN_BPW, floor)

    def copies(self, count: int) -> list[Call]:
        """Return the arguments of all blocks for `count` copies of the compared tokens."""
        if count not in self.calls:
            self.calls[count] = self.calls_on(self.compared_tokens.repeat(count, 1))
        return self.calls[count]

    def calls_on(self, tokens: Int64[Tensor, "n length"]) -> list[Call]:
        """Return the arguments of all blocks for some tokens."""
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
    """Return the common name of the layers of one kind in all experts of a mixture."""
    experts, _, kind = layer.name.rsplit(".", 2)
    return f"{experts}.{kind}"


def divergence(reference: list[Tensor], found: list[Tensor]) -> float:
    """Return the mean over positions of Σ p (log p − log q), in nats."""
    total = 0.0
    for p, q in zip(reference, found, strict=True):
        total += float((p.exp() * (p - q)).sum())
    return max(total / sum(map(len, reference)), 0.0)

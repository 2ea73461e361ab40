"""Probing: how far the model's predictions move when one layer is rounded, by forward passes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nearplane.lattice import NotPositiveDefiniteError
from nearplane.methods import Method
from nearplane.methods.allocation import Cause
from nearplane.walk.blocks import Layer
from nearplane.walk.capture import Call, PausedRun, calls_of_blocks
from nearplane.walk.head import head_inputs, head_of
from nearplane.walk.hessian import HessianSum
from nearplane.walk.observe import Plan

HESSIAN_TOKENS = 2048  # that give the shape of a layer's error
SEQUENCES, LENGTH = 2, 128  # whose predictions are compared
STRIDE = 4  # every so many positions is compared
DRAWN_BPW = 3.0  # the rate at which errors are drawn; divergence is in proportion to their power


@dataclass
class Probe:
    """A model whose layers are disturbed one at a time, before any is rounded.

    A layer's error is drawn as nearest plane would leave it at DRAWN_BPW: uniform in the box of
    its lattice, from the Hessian of a few tokens. The rest of the model stays as it is.
    """

    model: nn.Module
    plan: Plan
    method: Method
    tokens: Int64[Tensor, "n length"]
    wanted: set[str]
    draws: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    calls: dict[int, list[Call]] = field(default_factory=dict)

    @torch.no_grad()
    def causes(self) -> dict[str, Cause]:
        """Return what every wanted layer does to the model; the model stays as it was."""
        return dict(self.probed())

    def probed(self) -> Iterator[tuple[str, Cause]]:
        calls = self.calls_on(self.tokens[: max(1, HESSIAN_TOKENS // self.tokens.shape[1])])
        self.asked = self.tokens[-SEQUENCES:, :LENGTH]
        states = self.states(self.copies(1))
        reference = self.predictions(self.asked, states[-1])
        hidden = calls[0].hidden
        for index, block in enumerate(self.plan.blocks):
            disturbed = [
                (layer, self.block_output(index, states[index], layer, error))
                for layer, error in self.errors(index, calls[index].on(hidden))
            ]
            hidden = calls[index].on(hidden).run(block)
            yield from self.compared(index, disturbed, reference)

    def errors(self, index: int, call: Call) -> Iterator[tuple[Layer, Float[Tensor, "rows n"]]]:
        """Yield every wanted layer of a block with an error such as rounding it would leave."""
        stages = [
            stage
            for stage in self.plan.stages[index]
            if any(layer.name in self.wanted for layer in stage.layers)
        ]
        run = PausedRun(self.plan.blocks[index], [s.layers[0].module for s in stages], call)
        for stage in stages:
            inputs = run.to(stage.layers[0].module)
            if inputs is None:
                continue
            moment = HessianSum(inputs.shape[-1])
            moment.add(inputs)
            try:
                basis = self.method.basis(moment.mean())
            except NotPositiveDefiniteError:
                continue
            for layer in stage.layers:
                if layer.name in self.wanted:
                    weight = layer.weight().detach().float()
                    yield layer, self.method.drawn_error(weight, basis, DRAWN_BPW, self.draws)
        run.finish()

    def block_output(
        self, index: int, hidden: Tensor, layer: Layer, error: Float[Tensor, "rows n"]
    ) -> Tensor:
        """Return the block's hidden states with one layer disturbed."""
        weight = layer.module.weight.data
        try:
            layer.assign(layer.weight().detach().float() + error)
            return self.copies(1)[index].on(hidden).run(self.plan.blocks[index])
        finally:
            layer.module.weight.data = weight

    def compared(
        self, index: int, disturbed: list[tuple[Layer, Tensor]], reference: list[Tensor]
    ) -> Iterator[tuple[str, Cause]]:
        """Yield the divergence that each disturbed output of block `index` ends in."""
        if not disturbed:
            return
        count = len(disturbed)
        hidden = torch.cat([states for _, states in disturbed])
        calls = self.copies(count)
        for later in range(index + 1, len(self.plan.blocks)):
            hidden = calls[later].on(hidden).run(self.plan.blocks[later])
        many = self.predictions(self.asked.repeat(count, 1), hidden)
        for index, (layer, _) in enumerate(disturbed):
            found = many[index * len(reference) : (index + 1) * len(reference)]
            rows, columns = layer.shape
            floor = self.method.floor(rows, columns)
            yield layer.name, Cause(divergence(reference, found), rows * columns, DRAWN_BPW, floor)

    def copies(self, count: int) -> list[Call]:
        """Return the calls of all blocks on `count` copies of what is asked."""
        if count not in self.calls:
            self.calls[count] = self.calls_on(self.asked.repeat(count, 1))
        return self.calls[count]

    def calls_on(self, tokens: Int64[Tensor, "n length"]) -> list[Call]:
        """Return the calls of all blocks on some tokens."""
        return calls_of_blocks(self.model, self.plan.blocks, self.plan.tuples, tokens)

    def states(self, calls: list[Call]) -> list[Tensor]:
        """Return what every block is given, and what the last one gives."""
        states = [calls[0].hidden]
        for call, block in zip(calls, self.plan.blocks, strict=True):
            states.append(call.on(states[-1]).run(block))
        return states

    def predictions(self, tokens: Tensor, hidden: Tensor) -> list[Tensor]:
        """Return the log-probabilities at the compared positions, sequence by sequence."""
        given = head_inputs(self.model, self.plan, head_of(self.model), tokens, hidden)
        head: Any = self.model.get_output_embeddings()
        return [
            torch.log_softmax(head(sequence.contiguous()).float(), -1)
            for sequence in given[:, STRIDE - 1 :: STRIDE]
        ]


def divergence(reference: list[Tensor], found: list[Tensor]) -> float:
    """Return the mean over positions of Σ p (log p − log q), in nats."""
    total = 0.0
    for p, q in zip(reference, found, strict=True):
        total += float((p.exp() * (p - q)).sum())
    return max(total / sum(map(len, reference)), 0.0)

"""How sensitive the model's predictions are to the rounding of each layer, by forward passes."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from nearplane.lattice import NotPositiveDefiniteError
from nearplane.methods import Method, Target
from nearplane.methods.allocation import (
    Sensitivity,
    predicted_at,
    predicted_divergences,
    shared_out,
)
from nearplane.model.blocks import Layer
from nearplane.model.forward_arguments import logits_of
from nearplane.model.output_head import head_of, shares_weight
from nearplane.model.selection import is_embedding
from nearplane.types import NearplaneError, Progress, no_progress
from nearplane.walk.expert_hessians import BlockExperts
from nearplane.walk.forward_pass import ForwardPass, run_through
from nearplane.walk.hidden_states import Spilled
from nearplane.walk.input_statistics import sum_inputs
from nearplane.walk.output_hessians import OutputHessians
from nearplane.walk.placement import Placement
from nearplane.walk.streams import StageInputs, Streams
from nearplane.walk.token_use import steps_by_use
from nearplane.walk.trace import ModelTrace

Error = tuple[Layer, Tensor]  # a layer, and an error of its weight as (out, in)

HESSIAN_TOKENS = 2048  # for the Hessians from which the layers' errors are drawn
SEQUENCES, LENGTH = 2, 128  # sequences whose predictions are compared, and tokens of each
POSITIONS = 32  # most predictions of a sequence that are compared, evenly spaced
DRAWN_BPW = 3.0  # the rate at which errors are drawn; divergence is in proportion to their power
AROUND = [step / 4 for step in range(-6, 9)]  # bits per weight around the average, for the report


@dataclass
class Probe:
    """Adds a rounding error to one layer at a time, and compares the model's predictions.

    The error is drawn at random, as nearest plane would leave it at DRAWN_BPW: uniform in the box
    of the layer's lattice, with the Hessian of a few tokens. The experts of a mixture are disturbed
    together, first all gates, then all up projections and so on, and get one rate: too few tokens
    reach each expert to measure them one by one.

    - `placement`: products in float32 at least; in bfloat16 most layers' errors drown in rounding.

    - `wanted`: the names of the layers to measure.
    - `outside`: those of them that are outside of the blocks: an output head, or an embedding that
      is one, too.
    - `outputs`: the output Hessians that layers are rounded under, where they are.
    """

    placement: Placement
    trace: ModelTrace
    method: Method
    tokens: Int64[Tensor, "n length"]
    wanted: set[str]
    progress: Progress = no_progress
    outside: list[Layer] = field(default_factory=list)
    outputs: OutputHessians | None = None
    draws: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @cached_property
    def units(self) -> dict[str, str]:
        """Layer -> its unit, which gets one rate: the layer, or its kind in all experts."""
        units = {
            layer.name: layer.name if stage.mixture is None else kind_of(layer)
            for stages in self.trace.stages
            for stage in stages
            for layer in stage.layers
            if layer.name in self.wanted
        }
        return units | {layer.name: layer.name for layer in self.outside}

    @cached_property
    def compared_tokens(self) -> Int64[Tensor, "n length"]:
        """The tokens whose predictions are compared."""
        return self.tokens[-SEQUENCES:, :LENGTH]

    @torch.no_grad()
    def sensitivities(self) -> dict[str, Sensitivity]:
        """Return how sensitive the model is to every unit of layers; it is left as it was."""
        with self.placement.outside():
            return dict(self.probed())

    def probed(self) -> Iterator[tuple[str, Sensitivity]]:
        """Run the blocks once, on the original states and on those that earlier errors gave."""
        whole = self.begun(self.tokens[: max(1, HESSIAN_TOKENS // self.tokens.shape[1])])
        undisturbed, others = self.begun(self.compared_tokens), Disturbed(self)
        with closing(self.placement.in_order(self.trace.order)) as blocks:
            for call, index in enumerate(blocks):
                block, first = self.trace.blocks[index], index not in self.trace.order[:call]
                others.states = self.placement.spilled_states()
                others.run(index)
                if first:
                    for errors in self.together(index, whole):
                        others.disturb(index, errors)
                else:
                    whole.go_on(whole.expect(index).run(block))
                others.run_waiting(index)
                output = undisturbed.expect(index).run(block)
                others.history.append(output)
                undisturbed.go_on(output)
                # every block adds passes that run through the later ones
                self.progress("probing the layers", ((call + 1) / len(self.trace.order)) ** 2)
        reference = self.predictions(undisturbed)
        for layers, each in others.passes:
            yield self.compared(layers, each, reference)
        for layer in self.outside:
            yield from self.probed_outside(layer, whole, reference)
        whole.close()

    def probed_outside(
        self, layer: Layer, whole: ForwardPass, reference: list[Tensor]
    ) -> Iterator[tuple[str, Sensitivity]]:
        """Yield the sensitivity to an embedding or output head, or to both where they are one.

        - `whole`: a forward pass that reached the head; run to its end where that is `layer`.
        """
        device, passes = self.placement.device, [whole]
        if is_embedding(layer) and not shares_weight(layer.module, whole.head):
            passes, hessian = [], torch.eye(layer.shape[1], device=device)
        else:
            given = [StageInputs(whole.head_inputs())]
            hessian = sum_inputs(layer.shape[1], given, device=device).hessian
        try:
            basis = self.method.basis(hessian)
        except NotPositiveDefiniteError:
            return
        before, weight = layer.stored.data, layer.weight().detach().float()
        target = Target(weight)
        if self.method.scales_rows:
            row_step = steps_by_use(layer, self.tokens, passes).to(device)
            target = Target(weight, row_step=row_step)
        try:
            layer.assign(weight + self.method.drawn_error(target, basis, DRAWN_BPW, self.draws))
            each = self.begun(self.compared_tokens)
            run_through([each], self.placement)
            yield self.compared([layer], each, reference)
        finally:
            layer.stored.data = before

    def begun(self, tokens: Int64[Tensor, "n length"]) -> ForwardPass:
        """Return a forward pass that is paused at the first block."""
        model: Any = self.placement.model
        tokens, head = self.placement.on_device(tokens), head_of(model)
        begun = ForwardPass(model, self.trace, tokens, head)
        begun.go_on()
        return begun

    def together(self, index: int, whole: ForwardPass) -> Iterator[list[Error]]:
        """Yield the errors added at a time: of one layer, or of all experts' layers of one kind.

        Then runs `whole` to the next block.
        """
        units: dict[str, list[Error]] = {}
        for layer, error in self.errors(index, whole):
            unit = self.units[layer.name]
            if unit == layer.name:
                yield [(layer, error)]
            else:
                # errors of all experts are in memory at once: in the weights' type
                narrow = error.to(layer.weight().dtype)
                units.setdefault(unit, []).append((layer, narrow))
        yield from units.values()

    def errors(self, index: int, whole: ForwardPass) -> Iterator[Error]:
        """Yield every wanted layer of a block with an error such as rounding it would leave.

        Then runs `whole`, on whose inputs the errors are drawn, to the next block.
        """
        stages = [
            stage
            for stage in self.trace.stages[index]
            if any(layer.name in self.wanted for layer in stage.layers)
        ]
        streams = Streams.of(self.trace, index, stages, [partial(whole.expect, index)])
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
                    weighed = [] if self.outputs is None else self.outputs.of(layer)
                    weight = layer.weight().detach().float()
                    target = Target(weight, output_hessian=weighed)
                    yield layer, self.method.drawn_error(target, basis, DRAWN_BPW, self.draws)
        whole.go_on(next(streams.finish()))

    def compared(
        self, layers: list[Layer], each: ForwardPass, reference: list[Tensor]
    ) -> tuple[str, Sensitivity]:
        """Return a unit's name, and the divergence of the predictions that its error leads to."""
        found = self.predictions(each)
        each.close()
        floor = max(self.method.floor(*layer.shape) for layer in layers)
        weights = sum(layer.weight().numel() for layer in layers)
        unit = self.units[layers[0].name]
        columns = layers[0].shape[1]
        return unit, Sensitivity(divergence(reference, found), weights, DRAWN_BPW, floor, columns)

    def predictions(self, each: ForwardPass) -> list[Tensor]:
        """Return the log-probabilities at the compared positions, sequence by sequence."""
        length = self.compared_tokens.shape[1]
        at = compared_of(length)
        if each.inputs is not None and each.inputs.ndim == 3 and each.inputs.shape[1] == length:
            each.go_on((each.head_inputs()[:, at].contiguous(),))
        elif each.inputs is not None:
            each.go_on()
        logits = logits_of(each.result)
        some = logits[:, at] if logits.shape[1] == length else logits
        if not torch.isfinite(some).all():
            raise NearplaneError(
                f"the predictions of {type(self.placement.model).__name__} hold NaN or infinity on "
                "the calibration text: repair its weights, or give another --arithmetic"
            )
        return [torch.log_softmax(sequence.float(), -1) for sequence in some]


@dataclass
class Disturbed:
    """The forward passes in which one unit of layers each has an error.

    Where blocks change what others are given, a pass runs from the model's first block on. Else it
    begins with the outputs of the undisturbed pass.

    - `passes`: with the layers of the unit. `waiting`: passes whose unit's block is still to come.
    - `history`: the outputs of the undisturbed pass, call by call.
    - `states`: keeps hidden states; None leaves them in memory.
    """

    probe: Probe
    passes: list[tuple[list[Layer], ForwardPass]] = field(default_factory=list)
    waiting: list[ForwardPass] = field(default_factory=list)
    history: list[Any] = field(default_factory=list)
    states: Spilled | None = None

    def __post_init__(self) -> None:
        if self.probe.trace.changes_arguments:
            count = len(set(self.probe.units.values()))
            self.waiting = [self.probe.begun(self.probe.compared_tokens) for _ in range(count)]

    def run(self, index: int) -> None:
        """Run the disturbed passes through a block."""
        for _, each in self.passes:
            self.hand_on(each, each.expect(index).run(self.probe.trace.blocks[index]))

    def run_waiting(self, index: int) -> None:
        """Run the passes through a block whose errors are in later ones."""
        for each in self.waiting:
            self.hand_on(each, each.expect(index).run(self.probe.trace.blocks[index]))

    def hand_on(self, each: ForwardPass, output: Any) -> None:
        each.go_on(output)
        each.keep_in(self.states, output)

    def disturb(self, index: int, errors: list[Error]) -> None:
        """Begin a pass with errors in some layers of a block, and run it to the next block."""
        each = self.waiting.pop() if self.waiting else self.begun_anew()
        weights = [layer.stored.data for layer, _ in errors]
        try:
            for layer, error in errors:
                layer.assign(layer.weight().detach().float() + error)
            output = each.expect(index).run(self.probe.trace.blocks[index])
        finally:
            for (layer, _), weight in zip(errors, weights, strict=True):
                layer.stored.data = weight
        self.hand_on(each, output)
        self.passes.append(([layer for layer, _ in errors], each))

    def begun_anew(self) -> ForwardPass:
        """Return a pass that is where the undisturbed one is."""
        each = self.probe.begun(self.probe.compared_tokens)
        for output in self.history:
            each.go_on(output)
        return each


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


def shared_rates(
    sensitivities: dict[str, Sensitivity], average: float, method: Method
) -> tuple[dict[str, float], float, dict[str, object]]:
    """Return the units' bits per weight at an average, the divergence that is expected, and facts.

    The facts are report.json's:

    - "bpw": the rate at which every unit alone was rounded. "units": of each unit its divergence
      there, and the one that is expected at its own rate, in nats a token.
    - "averages": the divergence that is expected at other averages, as [bpw, nats a token].
    """
    bits, predicted_kl = shared_out(sensitivities, average, method.rates)
    expected = predicted_divergences(sensitivities, bits, method.rates)
    averages = [average + each for each in AROUND if average + each > 0]
    facts = {
        "bpw": DRAWN_BPW,
        "units": {n: [each.divergence, expected[n]] for n, each in sensitivities.items()},
        "averages": [list(pair) for pair in predicted_at(sensitivities, averages, method.rates)],
    }
    return bits, predicted_kl, facts

"""Quantize a model block by block, each layer on the inputs that the quantized model gives it."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from nearplane.methods import Method
from nearplane.model.block_loading import InMemory
from nearplane.model.blocks import Layer, check_finite, linear_modules
from nearplane.model.experts import split_experts_
from nearplane.model.output_head import head_of, shares_weight
from nearplane.model.process_memory import forget_file_pages, trim
from nearplane.model.selection import Rules, Selection, select
from nearplane.types import NearplaneError, Progress, no_progress
from nearplane.walk.calibration import check_tokens
from nearplane.walk.expert_hessians import BlockExperts
from nearplane.walk.forward_pass import ForwardPass, Passes, begin, run_through
from nearplane.walk.input_statistics import InputStatistics, sum_both_streams, sum_inputs
from nearplane.walk.output_hessians import BackwardPasses, OutputHessians
from nearplane.walk.placement import Placement
from nearplane.walk.ranks import ALONE, Ranks
from nearplane.walk.rounding import Done, LayerStore, Rounder
from nearplane.walk.self_check import SamplePass, check_forward_passes, check_replaceable
from nearplane.walk.sensitivity import Probe, shared_rates
from nearplane.walk.streams import StageInputs, Streams
from nearplane.walk.token_use import steps_by_use
from nearplane.walk.trace import ModelTrace, Stage, trace_model

BATCH_TOKENS = 2048
EMBEDDING_TOKENS = 8192  # on which an embedding is rounded that is the output head, too


@dataclass
class Walk:
    """Quantizes the layers of a model in order: call `prepare`, then iterate over it once.

    Yields (layer, QuantizedWeight, LayerReport) for each layer. Frees the weights of every
    finished block, so that the model cannot run afterwards. `arrivals` counts the tokens that were
    routed to each expert; `predicted_kl` is what `allocate` expects, in nats a token, and `probed`
    what it measured.

    - `selection`: which layers are quantized, and its rules; chosen by `rules` if None.
    - `bits`: rates of layers that differ from the method's own.
    - `store`: keeps finished layers for a later process. Layers that it has are not rounded
      again, but forward passes still go through them, so that later layers get the same inputs.
    - `ranks`: the processes that quantize together, each on its share of the tokens.
    - `placement`: where tensors live; None is in memory and in their stored types.
    - `sampled`: whether a few tokens follow the walk, to compare a loaded checkpoint with.
    """

    model: nn.Module
    method: Method
    tokens: Int64[Tensor, "n length"]
    rules: Rules = field(default_factory=Rules)
    selection: Selection | None = None
    bits: dict[str, float] = field(default_factory=dict)
    store: LayerStore | None = None
    ranks: Ranks = ALONE
    placement: Placement | None = None
    sampled: bool = False
    arrivals: dict[str, dict[str, int]] = field(default_factory=dict)
    predicted_kl: float | None = None
    probed: dict[str, object] = field(default_factory=dict)
    ready: "Prepared | None" = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.selection is not None:
            self.rules = self.selection.rules

    def prepare(self) -> "Walk":
        """Run the model on a few tokens, to see which layers share inputs, and check the weights.

        Splits experts. Raises NearplaneError for what cannot be quantized.
        """
        check_tokens(self.model, self.tokens)
        placement = self.placement or Placement(self.model)
        split_experts_(self.model)
        selection = self.selection or select(self.model, self.rules)
        trace = trace_model(self.model, self.tokens, placement)
        layers = [*selection.among(trace.layers), *selection.layers_outside(self.model)]
        if not layers:
            raise NearplaneError("every layer is skipped: nothing to quantize")
        check_layers(self.method, layers)
        finite = partial(check_block, selection, trace)
        check_forward_passes(trace, self.tokens, placement, finite)
        if isinstance(placement.loader, InMemory):
            check_replaceable(self.model, trace, layers, placement)
        for layer in selection.layers_outside(self.model):
            check_finite(layer)
        self.ready = Prepared(placement, selection, trace, layers)
        return self

    @property
    def prepared(self) -> "Prepared":
        """The result of `prepare`; ValueError before it was called."""
        if self.ready is None:
            raise ValueError("the walk was not prepared")
        return self.ready

    @property
    def trace(self) -> ModelTrace:
        return self.prepared.trace

    @property
    def layers(self) -> list[Layer]:
        """The layers that are quantized."""
        return self.prepared.layers

    @property
    def left_out(self) -> list[str]:
        """Sentences on what stays as it is."""
        return self.prepared.selection.left_out(self.trace.unreached)

    @property
    def by_themselves(self) -> str:
        """Why rows do not make up for each other; "" if they do, or for a method without that."""
        return "" if self.prepared.outputs is None else self.prepared.outputs.problem

    @property
    def fallbacks(self) -> list[str]:
        """The layers that were rounded to nearest."""
        return [] if self.ready is None or self.ready.rounder is None else self.rounder.fallbacks

    @property
    def rounder(self) -> Rounder:
        """The rounder of this walk, made when it is first needed."""
        prepared = self.prepared
        if prepared.rounder is None:
            prepared.rounder = self.rounder_for(prepared)
        return prepared.rounder

    def rounder_for(self, found: "Prepared") -> Rounder:
        """Return a new rounder; `evaluate/replay.py` overrides this."""
        parts = found.placement, found.trace, found.layers, self.rules, self.ranks, self.bits
        return Rounder(self.method, *parts, self.store, self.weigh_outputs())

    def weigh_outputs(self, progress: Progress = no_progress) -> OutputHessians | None:
        """Return the layers' output Hessians; None for a method that takes none."""
        prepared = self.prepared
        if prepared.outputs is None and self.method.weighs_outputs:
            parts = prepared.placement, self.trace, self.tokens, self.layers, self.head
            prepared.outputs = BackwardPasses(*parts, self.ranks, progress).output_hessians()
        return prepared.outputs

    def allocate(self, progress: Progress = no_progress) -> dict[str, float]:
        """Set and return every layer's rate, in bits per weight, by its sensitivity.

        All gates of a mixture's experts share one rate, all up and all down projections another.
        Raises NearplaneError for a method without a rate.
        """
        prepared, rate = (self if self.ready else self.prepare()).prepared, self.method.rate
        if rate is None:
            raise NearplaneError(f"{self.method.name} has no rate that could be shared out")
        wanted = {layer.name for layer in prepared.layers}
        outside = prepared.selection.layers_outside(self.model)
        how = self.method, self.tokens, wanted, progress, outside, self.weigh_outputs(progress)
        probe = Probe(prepared.placement.precise(), self.trace, *how)
        sensitivities = probe.sensitivities()
        if sensitivities:
            bits, self.predicted_kl, self.probed = shared_rates(sensitivities, rate, self.method)
            rates = torch.tensor(list(bits.values()), dtype=torch.float64, device="cpu")
            self.ranks.from_first_(rates)
            bits = dict(zip(bits, rates.tolist(), strict=True))
            self.bits = {layer: bits[unit] for layer, unit in probe.units.items() if unit in bits}
        return self.bits

    def __iter__(self) -> Iterator[Done]:
        prepared = (self if self.ready else self.prepare()).prepared
        original = self.begun_passes() if self.method.compensates else []
        for embedding in prepared.selection.embeddings(self.model):
            yield from self.quantize_embedding(embedding)
        if self.sampled:
            head = self.head if self.goes_to_head else None
            prepared.sample = SamplePass(self.trace, prepared.placement, head)
        # closed after an error too: passes hold files open
        with closing(Passes(self.begun_passes(original), original)) as passes:
            forget_file_pages()
            called: set[int] = set()
            with closing(prepared.placement.in_order(self.trace.order)) as blocks:
                for call, index in enumerate(blocks):
                    last = call == len(self.trace.order) - 1 and not self.goes_to_head
                    again = index in called
                    called.add(index)
                    yield from self.run_block(index, passes, again, last)
            for head in prepared.selection.heads(self.model):
                yield from self.quantize_head(head, passes)
        if prepared.sample is not None:
            prepared.sample.finish()

    @property
    def goes_to_head(self) -> bool:
        """Whether the forward passes are needed behind the last block."""
        return bool(self.prepared.selection.heads(self.model))

    @property
    def head(self) -> nn.Module | None:
        """The output head, in front of which forward passes pause."""
        return head_of(self.model)

    def batches(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return this process's share of the tokens, batch by batch."""
        return self.ranks.share(tokens).split(max(1, BATCH_TOKENS // tokens.shape[1]))

    def begun_passes(self, twins: Sequence[ForwardPass] = ()) -> list[ForwardPass]:
        """Return forward passes of all batches, paused at the first block.

        - `twins`: those of the other stream, whose equal arguments they share; or none.
        """
        place = self.prepared.placement
        head = self.head if self.goes_to_head else None
        batches = self.batches(self.tokens)
        passes = [ForwardPass(self.model, self.trace, place.on_device(b), head) for b in batches]
        states = place.spilled_states()
        with place.outside():
            for number, each in enumerate(passes):
                each.go_on()
                each.share_memory_((twins or passes)[0])
                if twins:
                    each.share_memory_(twins[number])
                each.keep_in(states)
        return passes

    def quantize_embedding(self, embedding: Layer) -> Generator[Done, None, None]:
        """Quantize the embedding, before anything else.

        Where the output head shares it, on what that is given at the end, by the original model for
        EMBEDDING_TOKENS tokens. Else every column matters alike, as far as is known.
        """
        with self.prepared.placement.outside():
            done = self.rounder.finished([embedding])
            if done is not None:
                yield from self.rounder.put([embedding], done)
            elif shares_weight(embedding.module, self.head):
                yield from self.rounder.round([embedding], *self.statistics_of_both_uses(embedding))
            else:
                yield from self.rounder.round([embedding], *self.statistics_of_look_ups(embedding))

    def statistics_of_both_uses(self, embedding: Layer) -> tuple[InputStatistics, Tensor | None]:
        """Return the Hessian of what the output head is given, and the steps of rows."""
        place, fewest = self.prepared.placement, self.ranks.size
        some = self.tokens[: max(fewest, EMBEDDING_TOKENS // self.tokens.shape[1])]
        passes = [
            ForwardPass(self.model, self.trace, place.on_device(batch), self.head)
            for batch in self.ranks.share(some).split(1)
        ]
        with closing(Passes(passes)):
            begin(passes)
            run_through(passes, place)
            return self.statistics_at_head(embedding, passes), self.row_steps(embedding, passes)

    def statistics_of_look_ups(self, embedding: Layer) -> tuple[InputStatistics, Tensor | None]:
        """Return the Hessian of an embedding that is only looked up in, and its rows' steps."""
        columns, device = embedding.shape[1], self.prepared.placement.device
        identity = torch.eye(columns, device=device)
        return InputStatistics(identity, self.tokens.numel(), 0), self.row_steps(embedding)

    def row_steps(self, layer: Layer, passes: Sequence[ForwardPass] = ()) -> Tensor | None:
        """Return the factors of the rows' steps of an embedding or output head, by tokens' use.

        None for a method that takes none.

        - `passes`: paused at the head, which this is; they are run to their end.
        """
        if not self.method.scales_rows:
            return None
        row_step = steps_by_use(layer, self.tokens, passes, self.ranks)
        # machines may compute different last digits
        self.ranks.from_first_(row_step)
        return row_step.to(self.prepared.placement.device)

    def statistics_at_head(self, layer: Layer, passes: Sequence[ForwardPass]) -> InputStatistics:
        """Return the Hessian of what the output head is given; all passes are paused there."""
        given = (StageInputs(each.head_inputs()) for each in passes)
        return sum_inputs(layer.shape[1], given, self.ranks, self.prepared.placement.device)

    def run_block(
        self, index: int, passes: "Passes", again: bool, last: bool
    ) -> Generator[Done, None, None]:
        """Quantize a block stage by stage, and run the forward passes up to the next one.

        - `again`: whether it was called before, and is only run. `last`: the passes end here.
        """
        prepared = self.prepared
        stages = [s for s in self.trace.stages[index] if prepared.selection.among(s.layers)]
        stages = [] if again else stages
        calls = [partial(each.expect, index) for each in passes.quantized]
        originals = [partial(each.expect, index) for each in passes.original]
        limits = prepared.placement.limits
        earlier = self.earlier_weights(index)
        streams = Streams.of(self.trace, index, stages, calls, originals, limits.paused, earlier)
        with closing(streams):
            experts = BlockExperts(streams, self.ranks, prepared.placement)
            for stage in stages:
                yield from self.quantize_stage(stage, streams, experts)
            if prepared.sample is not None:
                prepared.sample.follow(index)
            passes.hand_on(streams.finish(), prepared.placement, last)
        for layer in (layer for stage in stages for layer in stage.layers):
            if layer in self.rounder.rounded and not self.trace.shared(layer):
                layer.release()
        forget_file_pages()
        trim()

    def earlier_weights(self, index: int) -> dict[nn.Module, Tensor]:
        """Return the original weights of the layers of a block that were quantized before."""
        originals, owner = self.rounder.originals, self.prepared.placement.owner
        if not originals:
            return {}
        modules = linear_modules(self.trace.blocks[index])
        return {m: originals[owner(m)] for m in modules if owner(m) in originals}

    def quantize_head(self, head: Layer, passes: "Passes") -> Generator[Done, None, None]:
        """Quantize the output head, in front of which the forward passes are paused."""
        with self.prepared.placement.outside():
            done = self.rounder.finished([head])
            if done is not None:
                yield from self.rounder.put([head], done)
                return
            statistics = self.statistics_at_head(head, passes.quantized)
            row_step = self.row_steps(head, passes.quantized)
            yield from self.rounder.round([head], statistics, row_step)

    def quantize_stage(
        self, stage: Stage, streams: Streams, experts: BlockExperts
    ) -> Generator[Done, None, None]:
        """Quantize the layers that share one Hessian."""
        layers = self.prepared.selection.among(stage.layers)
        tokens = experts.tokens_of(stage)
        done = self.rounder.finished(layers)
        if done is not None:
            deque(streams.given(stage), maxlen=0)
            if tokens is not None:
                self.note_arrivals(layers[0], done[0][1].tokens)
            yield from self.rounder.put(layers, done)
            return
        device = self.prepared.placement.device
        statistics = statistics_of(stage, layers[0].shape, streams, self.ranks, device)
        if tokens is not None:
            self.note_arrivals(layers[0], statistics.tokens)
            statistics = tokens.blended(stage, statistics)
        yield from self.rounder.round(layers, statistics)

    def note_arrivals(self, layer: Layer, tokens: int) -> None:
        """Note how many tokens were routed to the expert that a layer is part of."""
        experts, expert, _ = layer.name.rsplit(".", 2)
        self.arrivals.setdefault(experts, {})[expert] = tokens


@dataclass
class Prepared:
    """What is known of a model before its first layer is rounded.

    - `layers`: those that are quantized and that tokens reach.
    """

    placement: Placement
    selection: Selection
    trace: ModelTrace
    layers: list[Layer]
    rounder: Rounder | None = None
    outputs: OutputHessians | None = None
    sample: SamplePass | None = None


def check_layers(method: Method, layers: list[Layer]) -> None:
    """Raise NearplaneError naming the first layer whose shape cannot meet the method's target."""
    for layer in layers:
        try:
            method.check(*layer.shape)
        except NearplaneError as error:
            raise NearplaneError(
                f"{layer.name}: {error}; give more bits, or leave the layer as it is (--skip)"
            ) from error


def check_block(selection: Selection, trace: ModelTrace, index: int) -> None:
    """Raise NearplaneError when a weight of a block that is quantized holds NaN or infinity."""
    for layer in selection.among(la for stage in trace.stages[index] for la in stage.layers):
        check_finite(layer)


def statistics_of(
    stage: Stage, shape: tuple[int, int], streams: Streams, ranks: Ranks, device: torch.device
) -> InputStatistics:
    """Return the Hessian of a stage's inputs, and the moments of both streams if there are two.

    An expert has no moments: the original model routes other tokens to it, so that inputs cannot
    be compared. Nor has a stage that is called several times.
    """
    rows, columns = shape
    given = streams.given(stage)
    if streams.originals and stage.times == 1 and stage.mixture is None:
        return sum_both_streams(columns, rows, given, len(streams.runs), ranks, device)
    return sum_inputs(columns, given, ranks, device)

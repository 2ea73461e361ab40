"""The walk: block after block, stage after stage, every layer rounded on what it really sees."""

import re
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nearplane.lattice import NotPositiveDefiniteError
from nearplane.lattice.basis import Basis
from nearplane.lattice.cross_target import choose_drifts, moved
from nearplane.methods import Aim, Method
from nearplane.methods.allocation import allocate
from nearplane.model.block_loading import InMemory, Shelf
from nearplane.model.blocks import Layer, check_finite, kept_router, routers, unquantizable
from nearplane.model.output_head import head_of, untie
from nearplane.model.process_memory import forget_file_pages, trim
from nearplane.types import LayerReport, NearplaneError, QuantizedWeight, Step, silent
from nearplane.walk.activation_limits import Room
from nearplane.walk.calibration import check_tokens
from nearplane.walk.capture import Call, calls_of_blocks
from nearplane.walk.expert_hessians import Entering
from nearplane.walk.hidden_states import States
from nearplane.walk.input_statistics import Seen, see, see_drift
from nearplane.walk.layer_report import TO_NEAREST, Measured, report_of
from nearplane.walk.placement import Weights
from nearplane.walk.ranks import ALONE, Ranks
from nearplane.walk.sensitivity import Probe
from nearplane.walk.streams import Calls, Given, Streams
from nearplane.walk.trace import Plan, Stage, head_inputs, observe

BATCH_TOKENS = 2048

Done = tuple[Layer, QuantizedWeight, LayerReport]
Finished = tuple[QuantizedWeight, LayerReport]


@dataclass(frozen=True)
class Rules:
    """What the walk leaves out and what it puts up with.

    - `skip`: regular expressions; layers whose names match one stay as they are.
    - `strict`: refuse a model with parts that cannot be quantized, instead of naming them.
    - `lm_head`: quantize the output head too; it is untied from the embedding if they share.
    - `fallback_share`: the share of layers that may fall back to round-to-nearest.
    """

    skip: tuple[str, ...] = ()
    strict: bool = False
    lm_head: bool = False
    fallback_share: float = 0.05


@runtime_checkable
class Keeper(Protocol):
    """Keeps what is finished through the end of a process.

    Layers that are rounded together have one number, counted in the order of the walk.
    """

    def keep(self, place: int, originals: Sequence[Tensor], done: Sequence[Finished]) -> None: ...

    def find(
        self, place: int, names: Sequence[str], originals: Iterable[Tensor]
    ) -> list[Finished] | None: ...


@dataclass
class Walk:
    """A model on its way through a method; iterate over it once.

    Yields (layer, quantized weight, report) as each layer is done. The weights of a finished
    block are let go: what remains of the model is what was not quantized. Afterwards `fallbacks`
    names the layers that were rounded to nearest; `left_out` what was not quantized, and why;
    `arrivals` the tokens that came to each expert.

    - `bits`: rates of layers that differ from the method's own.
    - `keeper`: is given what is finished, and asked for it first. Layers that it has are not
      rounded again; the streams go through them all the same, so that what follows is what it
      would have been.
    - `ranks`: the processes that do this together, each on its share of the tokens.
    - `shelf`: where the weights of the blocks are; `room`: what may stay in memory.
    - `dtype`: of the products; None is as the model is stored.
    """

    model: nn.Module
    method: Method
    tokens: Int64[Tensor, "n length"]
    rules: Rules = field(default_factory=Rules)
    bits: dict[str, float] = field(default_factory=dict)
    keeper: Keeper | None = None
    ranks: Ranks = ALONE
    shelf: Shelf = field(default_factory=InMemory)
    room: Room = field(default_factory=Room)
    dtype: torch.dtype | None = None
    weights: Weights = field(init=False)
    place: int = field(init=False, default=0)
    plan: Plan = field(init=False)
    wanted: list[Layer] = field(init=False)
    widest: int = field(init=False)
    left_out: list[str] = field(init=False)
    fallbacks: list[str] = field(default_factory=list)
    arrivals: dict[str, dict[str, int]] = field(default_factory=dict)
    done: set[Layer] = field(default_factory=set)
    originals: dict[nn.Module, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_tokens(self.model, self.tokens)
        self.weights = Weights(self.model, self.shelf, self.dtype)
        self.plan = observe(self.model, self.tokens, self.weights)
        self.left_out = self.what_is_left_out()
        self.wanted = [layer for layer in self.plan.layers if not self.skipped(layer)]
        if self.rules.lm_head:
            self.wanted.append(head_of(self.model))
            untie(self.model, self.wanted[-1])
        if not self.wanted:
            raise NearplaneError("every layer is skipped: nothing to quantize")
        self.widest = max(layer.shape[1] for layer in self.wanted)
        for layer in self.wanted:
            try:
                self.method.check(*layer.shape)
            except NearplaneError as error:
                raise NearplaneError(f"{layer.name}: {error}") from error
        self.check_finite()

    def check_finite(self) -> None:
        """Raise NearplaneError when a weight to be quantized is no number."""
        wanted = set(self.wanted)
        for index, stages in enumerate(self.plan.stages):
            layers = [la for stage in stages for la in stage.layers if la in wanted]
            with self.shelf.held(index):
                for layer in layers:
                    check_finite(layer)
        if self.rules.lm_head:
            check_finite(self.wanted[-1])

    def allocate(self, step: Step = silent) -> dict[str, float]:
        """Give every layer of a block its own rate, by what it does to the model; returns them.

        The experts of a layer share one for their gates, one for their up projections and so on.
        """
        wanted = {layer.name for layer in self.wanted}
        probe = Probe(self.weights, self.plan, self.method, self.tokens, wanted, self.room, step)
        causes = probe.causes()
        if causes:
            bits = allocate(causes, self.method.bpw)
            rates = torch.tensor(list(bits.values()), dtype=torch.float64)
            self.ranks.from_first_(rates)
            bits = dict(zip(bits, rates.tolist(), strict=True))
            self.bits = {layer: bits[unit] for layer, unit in probe.units.items() if unit in bits}
        return self.bits

    def skipped(self, layer: Layer) -> bool:
        return any(re.search(pattern, layer.name) for pattern in self.rules.skip)

    def what_is_left_out(self) -> list[str]:
        """Return sentences on the parts of blocks that stay as they are."""
        strange = [
            part
            for index, block in enumerate(self.plan.blocks)
            for part in unquantizable(block, f"{self.plan.name}.{index}")
        ]
        if strange and self.rules.strict:
            raise NearplaneError(f"these parts cannot be quantized: {', '.join(strange)}")
        named = [f"{part} cannot be quantized" for part in strange]
        named += [
            kept_router(f"{self.plan.name}.{index}.{name}")
            for index, block in enumerate(self.plan.blocks)
            for name in routers(block)
        ]
        named += [f"{layer.name} was not reached by any token" for layer in self.plan.silent]
        return named + [
            f"{la.name} is skipped as asked" for la in self.plan.layers if self.skipped(la)
        ]

    def __iter__(self) -> Iterator[Done]:
        tokens = self.ranks.share(self.tokens)
        batches = tokens.split(max(1, BATCH_TOKENS // tokens.shape[1]))
        with self.weights.outside():
            calls, hidden = self.begun(batches)
        original = hidden if self.method.compensates else []
        forget_file_pages()
        for index in range(len(self.plan.blocks)):
            now, then = (
                [partial(called, c[index], states, b) for b, c in enumerate(calls[: len(states)])]
                for states in (hidden, original)
            )
            with self.weights.block(index):
                hidden, original = yield from self.quantize_block(index, now, then)
        if self.rules.lm_head:
            with self.weights.outside():
                yield from self.quantize_head(batches, hidden)

    def quantize_head(
        self, batches: Sequence[Tensor], hidden: States
    ) -> Generator[Done, None, None]:
        """Quantize the output head on what it is given when the last block gives `hidden`."""
        head = self.wanted[-1]
        inputs = (
            head_inputs(self.model, self.plan, head, batch, hidden[number])
            for number, batch in enumerate(batches)
        )
        done = self.kept([head])
        if done is None:
            yield from self.round([head], see(head.shape[1], map(Given, inputs), self.ranks))
        else:
            yield from self.put([head], done)

    def begun(self, batches: Sequence[Tensor]) -> tuple[list[list[Call]], States]:
        """Return the calls of all blocks for every batch, and what the first block is given."""
        states = self.room.states()
        calls: list[list[Call]] = []
        for batch in batches:
            made = calls_of_blocks(self.model, self.plan.blocks, self.plan.tuples, batch)
            states.append(made[0].hidden)
            made[0] = made[0].on(torch.empty(0))
            # masks and positions are mostly the same in all batches
            calls.append(
                [call.sharing(first) for call, first in zip(made, calls[0], strict=True)]
                if calls
                else made
            )
        return calls, states

    def quantize_block(
        self, index: int, calls: Calls, original: Calls
    ) -> Generator[Done, None, tuple[States, States]]:
        """Quantize a block stage by stage; returns its hidden states for every call.

        - `original`: the calls on what the original blocks give, or nothing.
        """
        stages = [s for s in self.plan.stages[index] if not all(map(self.skipped, s.layers))]
        streams = Streams.of(self.plan, index, stages, calls, original, self.room.paused)
        entering = Entering(streams, self.ranks, self.room.states)
        for stage in stages:
            yield from self.quantize_stage(stage, streams, entering)
        hidden = streams.finish(self.room.states)
        for layer in (layer for stage in stages for layer in stage.layers):
            if layer in self.done and not self.plan.shared(layer):
                layer.release()
        forget_file_pages()
        trim()
        return hidden

    def quantize_stage(
        self, stage: Stage, streams: Streams, entering: Entering
    ) -> Generator[Done, None, None]:
        """Quantize the layers that share one Hessian."""
        layers = [layer for layer in stage.layers if not self.skipped(layer)]
        entered = entering.of(stage)
        done = self.kept(layers)
        if done is not None:
            deque(streams.given(stage), maxlen=0)
            if entered is not None:
                self.note_arrivals(layers[0], done[0][1].tokens)
            yield from self.put(layers, done)
            return
        seen = seen_by(stage, layers[0].shape, streams, self.ranks)
        if entered is not None:
            self.note_arrivals(layers[0], seen.tokens)
            seen = entered.blended(stage, seen)
        yield from self.round(layers, seen)

    def note_arrivals(self, layer: Layer, tokens: int) -> None:
        """Note how many tokens came to the expert that a layer is part of."""
        experts, expert, _ = layer.name.rsplit(".", 2)
        self.arrivals.setdefault(experts, {})[expert] = tokens

    def round(self, layers: list[Layer], seen: Seen) -> Generator[Done, None, None]:
        """Round layers that share their inputs on the lattice that these define."""
        started = time.perf_counter()
        # before what needs most, and not more often: memory given back must be asked for again
        if layers[0].shape[1] == self.widest:
            forget_file_pages()
            trim()
        originals = [self.original(layer) for layer in layers]
        with self.ranks.sharing_rows():
            aims = aims_of(originals, seen)
        basis, fallback = self.basis_of(seen, layers)
        with self.ranks.sharing_rows():
            quantized = self.quantized(layers, originals, basis, None if fallback else aims)
        seconds = (time.perf_counter() - started) / len(layers)
        measured = Measured(seen, fallback, seconds)
        done = [
            (weight, report_of(layer, self.method, original, weight, measured))
            for layer, original, weight in zip(layers, originals, quantized, strict=True)
        ]
        if self.keeper is not None:
            self.keeper.keep(self.place, originals, done)
        yield from self.put(layers, done)

    def kept(self, layers: list[Layer]) -> list[Finished] | None:
        """Return what an earlier process made of layers that are rounded together, or None."""
        if self.keeper is None:
            return None
        # asked for only if something is found
        originals = (self.original(layer) for layer in layers)
        done = self.keeper.find(self.place, [layer.name for layer in layers], originals)
        # an expert of few tokens has borrowed others, which is no such fallback
        rounded = [report for _, report in done or [] if report.void.startswith(TO_NEAREST)]
        self.fallbacks += [report.name for report in rounded]
        return done

    def put(self, layers: list[Layer], done: list[Finished]) -> Iterator[Done]:
        """Put quantized weights in the place of the original ones."""
        self.place += 1
        for layer, (weight, report) in zip(layers, done, strict=True):
            layer.assign(weight.value())
            self.done.add(layer)
            yield layer, weight, report

    def quantized(
        self, layers: list[Layer], weights: list[Tensor], basis: Basis, aims: list[Aim] | None
    ) -> Iterable[QuantizedWeight]:
        """Return the layers' weights quantized, each at its own rate and aim if it has one.

        - `aims`: none in a list where one stream was run, None where the basis is no lattice.
        """
        if aims is None or not (aims or self.bits):
            return self.method.together(weights, basis)
        aims = aims or list(map(Aim, weights))
        return [
            self.method_of(layer).aimed(weight, basis, aim)
            for layer, weight, aim in zip(layers, weights, aims, strict=True)
        ]

    def method_of(self, layer: Layer) -> Method:
        """Return the method at the layer's own rate."""
        return self.method.at(self.bits[layer.name]) if layer.name in self.bits else self.method

    def original(self, layer: Layer) -> Float[Tensor, "rows columns"]:
        """Return the weight as the model had it, also if another block shares and rounded it."""
        if layer.module in self.originals:
            return self.originals[layer.module]
        stored = self.weights.original(layer.module)
        weight = (stored.T if layer.transposed else stored).to(torch.float32, copy=True)
        if self.plan.shared(layer):
            self.originals[layer.module] = weight
        return weight

    def basis_of(self, seen: Seen, layers: list[Layer]) -> tuple[Basis, str]:
        """Return the basis of a stage; where there is none, that of plain rounding, and why."""
        try:
            if not (seen.tokens or seen.borrowed) or not seen.hessian.any():
                raise NotPositiveDefiniteError("no token with a finite, non-zero input reached it")
            basis = self.method.basis(seen.hessian)
            # machines may differ in their last digits
            self.ranks.from_first_(basis.columns, basis.factor)
            return basis, ""
        except NotPositiveDefiniteError as error:
            self.fallbacks += [layer.name for layer in layers]
            share = len(self.fallbacks) / len(self.wanted)
            if share > self.rules.fallback_share:
                raise NearplaneError(
                    f"{len(self.fallbacks)} of {len(self.wanted)} layers could not be rounded on "
                    f"their inputs ({', '.join(self.fallbacks[:3])}: {error})"
                ) from error
            return self.method.basis(torch.eye(len(seen.hessian))), str(error)


def called(call: Call, states: States, batch: int) -> Call:
    """Return a block's call on the hidden states of one batch."""
    return call.on(states[batch])


def seen_by(stage: Stage, shape: tuple[int, int], streams: Streams, ranks: Ranks = ALONE) -> Seen:
    """Return what the inputs of a stage come to.

    An expert has no drift: the original model sends it other tokens, so that there is nothing to
    compare.
    """
    rows, columns = shape
    given = streams.given(stage)
    if streams.originals and stage.times == 1 and stage.among is None:
        return see_drift(columns, rows, given, len(streams.runs), ranks)
    return see(columns, given, ranks)


def aims_of(weights: list[Tensor], seen: Seen) -> list[Aim]:
    """Return what to come near to: the weights, moved as far as held-out tokens bear it out.

    Nothing where only one stream was run.
    """
    parts = seen.parts
    if parts is None or parts.fitted is None or parts.held is None:
        return []
    drifts = choose_drifts(weights, parts.fitted, parts.held)
    targets = moved(weights, parts.joined(seen), drifts)
    return [
        Aim(target, {"strength": drift.strength, "ridge": drift.ridge})
        for target, drift in zip(targets, drifts, strict=True)
    ]

"""The walk: block after block, stage after stage, every layer rounded on what it really sees."""

import re
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from nearplane.lattice import NotPositiveDefiniteError
from nearplane.lattice.basis import Basis
from nearplane.lattice.cross_target import choose_drift, moved
from nearplane.methods import Aim, Method
from nearplane.methods.allocation import allocate
from nearplane.types import LayerReport, NearplaneError, QuantizedWeight
from nearplane.walk.blocks import Layer, check_finite, kept_router, routers, unquantizable
from nearplane.walk.borrow import Entering
from nearplane.walk.capture import Call, calls_of_blocks
from nearplane.walk.drift import Seen, see, see_drift
from nearplane.walk.head import head_inputs, head_of, untie
from nearplane.walk.layer_report import TO_NEAREST, Measured, report_of
from nearplane.walk.memory import forget_file_pages, trim
from nearplane.walk.observe import Plan, Stage, observe
from nearplane.walk.probe import Probe
from nearplane.walk.ranks import ALONE, Ranks
from nearplane.walk.streams import Given, Streams

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
    """

    model: nn.Module
    method: Method
    tokens: Int64[Tensor, "n length"]
    rules: Rules = field(default_factory=Rules)
    bits: dict[str, float] = field(default_factory=dict)
    keeper: Keeper | None = None
    ranks: Ranks = ALONE
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
        self.plan = observe(self.model, self.tokens)
        self.left_out = self.what_is_left_out()
        self.wanted = [layer for layer in self.plan.layers if not self.skipped(layer)]
        if self.rules.lm_head:
            self.wanted.append(head_of(self.model))
            untie(self.model, self.wanted[-1])
        if not self.wanted:
            raise NearplaneError("every layer is skipped: nothing to quantize")
        mixed = [s for stages in self.plan.stages for s in stages if s.among is not None]
        if mixed and self.ranks.size > 1:
            raise NearplaneError(
                f"{mixed[0].layers[0].name} is of an expert: several processes cannot share a "
                "mixture of experts yet; start one"
            )
        self.widest = max(layer.shape[1] for layer in self.wanted)
        for layer in self.wanted:
            check_finite(layer)
            try:
                self.method.check(*layer.shape)
            except NearplaneError as error:
                raise NearplaneError(f"{layer.name}: {error}") from error

    def allocate(self) -> dict[str, float]:
        """Give every layer of a block its own rate, by what it does to the model; returns them.

        The experts of a layer share one for their gates, one for their up projections and so on.
        """
        wanted = {layer.name for layer in self.wanted}
        probe = Probe(self.model, self.plan, self.method, self.tokens, wanted)
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
        calls = [
            calls_of_blocks(self.model, self.plan.blocks, self.plan.tuples, batch)
            for batch in batches
        ]
        hidden = [call[0].hidden for call in calls]
        original = hidden if self.method.compensates else []
        forget_file_pages()
        for index in range(len(self.plan.blocks)):
            now, then = (
                [call[index].on(h) for call, h in zip(calls, states, strict=False)]
                for states in (hidden, original)
            )
            hidden, original = yield from self.quantize_block(index, now, then)
        if self.rules.lm_head:
            head = self.wanted[-1]
            pairs = zip(batches, hidden, strict=True)
            inputs = (head_inputs(self.model, self.plan, head, b, h) for b, h in pairs)
            done = self.kept([head])
            if done is None:
                yield from self.round([head], see(head.shape[1], map(Given, inputs), self.ranks))
            else:
                yield from self.put([head], done)

    def quantize_block(
        self, index: int, calls: list[Call], original: list[Call]
    ) -> Generator[Done, None, tuple[list[Tensor], list[Tensor]]]:
        """Quantize a block stage by stage; returns its hidden states for every call.

        - `original`: the calls on what the original blocks give, or nothing.
        """
        stages = [s for s in self.plan.stages[index] if not all(map(self.skipped, s.layers))]
        streams = Streams.of(self.plan, index, stages, calls, original)
        entering = Entering(streams)
        for stage in stages:
            yield from self.quantize_stage(stage, streams, entering)
        hidden = streams.finish()
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
            trim()
        basis, fallback = self.basis_of(seen, layers)
        originals = [self.original(layer) for layer in layers]
        with self.ranks.sharing_rows():
            quantized = self.quantized(layers, originals, basis, None if fallback else seen)
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
        self, layers: list[Layer], weights: list[Tensor], basis: Basis, seen: Seen | None
    ) -> Iterable[QuantizedWeight]:
        """Return the layers' weights quantized, each at its own rate and aim if it has one."""
        if seen is None or (seen.whole is None and not self.bits):
            return self.method.together(weights, basis)
        return [
            self.method_of(layer).aimed(weight, basis, aim_of(weight, seen))
            for layer, weight in zip(layers, weights, strict=True)
        ]

    def method_of(self, layer: Layer) -> Method:
        """Return the method at the layer's own rate."""
        return self.method.at(self.bits[layer.name]) if layer.name in self.bits else self.method

    def original(self, layer: Layer) -> Float[Tensor, "rows columns"]:
        """Return the weight as the model had it, also if another block shares and rounded it."""
        if layer.module in self.originals:
            return self.originals[layer.module]
        weight = layer.weight().detach().to(torch.float32, copy=True)
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


def check_tokens(model: Any, tokens: Int64[Tensor, "n length"]) -> None:
    """Raise NearplaneError when a token is none of the model's."""
    known = model.get_input_embeddings().weight.shape[0]
    low, high = (int(token) for token in tokens.aminmax())
    if low < 0 or high >= known:
        raise NearplaneError(
            f"the calibration holds the token {low if low < 0 else high}, but the model knows "
            f"0 .. {known - 1}: were the tokens made for another model?"
        )


def aim_of(weight: Float[Tensor, "rows n"], seen: Seen) -> Aim:
    """Return what to come near to: the weight, moved as far as held-out tokens bear it out."""
    if seen.fitted is None or seen.held is None or seen.whole is None:
        return Aim(weight)
    drift = choose_drift(weight, seen.fitted, seen.held)
    return Aim(moved(weight, seen.whole, drift), {"strength": drift.strength, "ridge": drift.ridge})

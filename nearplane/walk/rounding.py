"""Round the layers of a stage: their basis, their targets, the method, their reports."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearplane.lattice import NotPositiveDefiniteError
from nearplane.lattice.basis import Basis
from nearplane.lattice.cross_target import choose_ridges, ridge_targets
from nearplane.methods import Method, Target
from nearplane.model.blocks import Layer
from nearplane.model.process_memory import forget_file_pages, trim
from nearplane.model.selection import Rules
from nearplane.types import LayerReport, NearplaneError, QuantizedWeight
from nearplane.walk.input_statistics import InputStatistics
from nearplane.walk.output_hessians import OutputHessians
from nearplane.walk.placement import Placement
from nearplane.walk.ranks import Ranks
from nearplane.walk.report import TO_NEAREST, Measured, report_of
from nearplane.walk.trace import ModelTrace

Done = tuple[Layer, Any, Any]  # a layer, its QuantizedWeight, its LayerReport
Finished = tuple[QuantizedWeight, LayerReport]


@runtime_checkable
class LayerStore(Protocol):
    """Keeps finished layers beyond the end of the process.

    - `place`: the number of a group of layers that are rounded together, in the order of the walk.
    """

    def keep(self, place: int, originals: Sequence[Tensor], done: Sequence[Finished]) -> None: ...

    def find(
        self, place: int, names: Sequence[str], originals: Iterable[Tensor]
    ) -> list[Finished] | None: ...


@dataclass
class Rounder:
    """Rounds groups of layers that share inputs, and assigns the rounded weights to the model.

    - `layers`: all that will be rounded; `bits`: rates of those that differ from the method's own.
    - `store`: keeps finished layers for a later process; None keeps nothing.
    - `outputs`: the output Hessians of layers; None for a method that takes none.
    - `place`: how many groups were rounded. `fallbacks`: layers that were rounded to nearest.
    - `originals`: weights as they were, of layers that run again in other blocks or later.
    """

    method: Method
    placement: Placement
    trace: ModelTrace
    layers: list[Layer]
    rules: Rules
    ranks: Ranks
    bits: dict[str, float]
    store: LayerStore | None = None
    outputs: OutputHessians | None = None
    place: int = 0
    fallbacks: list[str] = field(default_factory=list)
    rounded: set[Layer] = field(default_factory=set)
    originals: dict[nn.Parameter, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.widest = max(layer.shape[1] for layer in self.layers)

    def round(
        self, layers: list[Layer], inputs: InputStatistics, row_step: Tensor | None = None
    ) -> Iterator[Done]:
        """Round layers that share their inputs on the lattice that these define.

        - `row_step`: see `Target`; of a single layer.
        """
        started = time.perf_counter()
        # only before the widest layers, which need most memory: freeing pages takes time
        if layers[0].shape[1] == self.widest:
            forget_file_pages()
            trim()
        originals = [self.original(layer) for layer in layers]
        with self.ranks.sharing_rows():
            targets = targets_of(originals, inputs)
            if row_step is not None:
                targets = [Target(originals[0], {}, row_step)]
            targets = self.weighed(layers, originals, targets)
        basis, fallback = self.basis_of(inputs, layers)
        with self.ranks.sharing_rows():
            quantized = self.quantized(layers, originals, basis, None if fallback else targets)
        seconds = (time.perf_counter() - started) / len(layers)
        pivots = None if fallback else basis.factor.diagonal()
        measured = Measured(inputs, fallback, seconds, pivots)
        done = [
            (weight, report_of(layer, self.method, original, weight, measured))
            for layer, original, weight in zip(layers, originals, quantized, strict=True)
        ]
        if self.store is not None:
            self.store.keep(self.place, originals, done)
        yield from self.put(layers, done)

    def weighed(
        self, layers: list[Layer], originals: list[Tensor], targets: list[Target]
    ) -> list[Target]:
        """Return the targets with the layers' output Hessians, where there are any."""
        found = [[] if self.outputs is None else self.outputs.of(layer) for layer in layers]
        if not any(found):
            return targets
        targets = targets or list(map(Target, originals))
        return [replace(t, output_hessian=h) for t, h in zip(targets, found, strict=True)]

    def finished(self, layers: list[Layer]) -> list[Finished] | None:
        """Return what an earlier process stored for layers that are rounded together, or None."""
        if self.store is None:
            return None
        # a generator, so that weights are only copied if the store compares them
        originals = (self.original(layer) for layer in layers)
        done = self.store.find(self.place, [layer.name for layer in layers], originals)
        # not those of experts that were rounded on borrowed tokens, which is a fallback, too
        nearest = [report for _, report in done or [] if report.void.startswith(TO_NEAREST)]
        self.fallbacks += [report.name for report in nearest]
        return done

    def put(self, layers: list[Layer], done: list[Finished]) -> Iterator[Done]:
        """Put quantized weights in the place of the original ones."""
        self.place += 1
        for layer, (weight, report) in zip(layers, done, strict=True):
            if self.trace.shared(layer):
                self.originals[self.placement.owner(layer.module)] = layer.stored.data
            layer.assign(weight.value())
            self.rounded.add(layer)
            yield layer, weight, report

    def quantized(
        self,
        layers: list[Layer],
        weights: list[Tensor],
        basis: Basis,
        targets: list[Target] | None,
    ) -> Iterable[QuantizedWeight]:
        """Return the layers' weights quantized, each at its own rate and towards its own target.

        - `targets`: empty if one stream was run, None if `basis` is the identity's (a fallback).
        """
        if targets is None or not (targets or self.bits):
            return self.method.together(weights, basis)
        targets = targets or list(map(Target, weights))
        return [
            self.method_of(layer).quantize_towards(weight, basis, target)
            for layer, weight, target in zip(layers, weights, targets, strict=True)
        ]

    def method_of(self, layer: Layer) -> Method:
        """Return the method at the layer's own rate."""
        if layer.name not in self.bits:
            return self.method
        return self.method.with_bpw(self.bits[layer.name])

    def original(self, layer: Layer) -> Float[Tensor, "rows columns"]:
        """Return the weight as the model has it, in float32, where layers are rounded."""
        stored, device = self.placement.original(layer.module), self.placement.device
        weight = stored.to(device).T if layer.transposed else stored.to(device)
        return weight.to(torch.float32, copy=True)

    def basis_of(self, inputs: InputStatistics, layers: list[Layer]) -> tuple[Basis, str]:
        """Return the basis of a stage and ""; or the identity's basis, and why the stage has none.

        Raises NearplaneError if more layers fell back than `rules` allow.
        """
        hessian = inputs.hessian
        try:
            if not (inputs.tokens or inputs.borrowed) or not hessian.any():
                raise NotPositiveDefiniteError("no token with a finite, non-zero input reached it")
            basis = self.method.basis(hessian)
            # machines may compute different last digits
            self.ranks.from_first_(basis.columns, basis.factor)
            return basis, ""
        except NotPositiveDefiniteError as error:
            self.fallbacks += [layer.name for layer in layers]
            if len(self.fallbacks) / len(self.layers) > self.rules.fallback_share:
                raise NearplaneError(
                    f"{len(self.fallbacks)} of {len(self.layers)} layers could not be rounded on "
                    f"their inputs ({', '.join(self.fallbacks[:3])}: {error}); leave them as they "
                    "are with --skip"
                ) from error
            return self.method.basis(torch.eye(len(hessian), device=hessian.device)), str(error)


def targets_of(weights: list[Tensor], inputs: InputStatistics) -> list[Target]:
    """Return what to round each weight towards; nothing if only one stream was run.

    Ridge and strength of the change are those of least mismatch on held-out tokens.
    """
    parts = inputs.parts
    if parts is None or parts.fitted is None or parts.held is None:
        return []
    choices = choose_ridges(weights, parts.fitted, parts.held)
    targets = ridge_targets(weights, parts.joined(inputs), choices)
    return [
        Target(target, {"strength": choice.strength, "ridge": choice.ridge})
        for target, choice in zip(targets, choices, strict=True)
    ]

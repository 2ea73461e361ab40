"""Two streams of hidden states through one block: of quantized layers, and of original ones."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearplane.experts import Experts
from nearplane.walk.capture import Call, PausedRun, inputs_of
from nearplane.walk.norm import before_norm
from nearplane.walk.observe import Plan, Stage


@dataclass(frozen=True)
class Given:
    """What the layers of a stage are given in one batch.

    - `inputs`: behind quantized layers; `original`: behind original ones, None where that stream
      is not run.
    - `lag`: what the hidden states that the outputs are added to lack, original − drifted, as the
      outputs would have to make up for it; None where they are not added.
    """

    inputs: Float[Tensor, "*batch columns"]
    original: Float[Tensor, "*batch columns"] | None = None
    lag: Float[Tensor, "*batch rows"] | None = None


@dataclass
class Streams:
    """A block's paused runs, one a batch; `originals` is empty where only one stream is run.

    The original runs are always one stage ahead: they leave a stage before its layers are
    quantized in place. Layers of it that run late, behind another stage, have their weights of
    before put back for that: `before`, None until then.
    """

    block: nn.Module
    runs: list[PausedRun]
    originals: list[PausedRun]
    added: dict[str, nn.Module]
    before: dict[nn.Module, Tensor | None]

    @classmethod
    def of(
        cls, plan: Plan, index: int, stages: list[Stage], calls: list[Call], original: list[Call]
    ) -> "Streams":
        """Start the runs of block `index` on both streams' calls."""
        block = plan.blocks[index]
        stops = [stage.layers[0].module for stage in stages]
        stops += {stage.among.entry for stage in stages if stage.among is not None}
        # the residual is followed only where it will be asked for
        names = plan.added if original else {}
        layers = [layer for stage in plan.stages[index] for layer in stage.layers]
        added = [names[layer.name] for layer in layers if layer.name in names]
        runs = [PausedRun(block, stops, call, added) for call in calls]
        late = [layer.module for stage in stages for layer in stage.late]
        before: dict[nn.Module, Tensor | None] = dict.fromkeys(late)
        originals = [PausedRun(block, stops, call, added, before) for call in original]
        return cls(block, runs, originals, names, before)

    def entered(self, among: Experts) -> list[Tensor]:
        """Return what all experts of a layer are given together, batch by batch.

        To be asked once, before what any one of them is given.
        """
        for original in self.originals:
            original.to(among.entry)
        reached = [run.to(among.entry) for run in self.runs]
        return [tokens for tokens in reached if tokens is not None]

    def given(self, stage: Stage) -> Iterator[Given]:
        """Yield what a stage is given, batch by batch; then let the original runs leave it."""
        module = stage.layers[0].module
        for index, run in enumerate(self.runs):
            inputs = run.to(module)
            original = self.originals[index] if self.originals else None
            twin = original.to(module) if original else None
            if inputs is None:
                continue
            if original is None:
                yield Given(inputs)
            elif twin is None or twin.shape != inputs.shape:
                # an expert that other tokens reach there: nothing to compare, so no drift
                yield Given(inputs, inputs)
            else:
                yield Given(inputs, twin, self.lag(stage, run, original, twin))
            if stage.times > 1:
                # what a layer is given later in the same run is not known yet
                later = inputs_of(self.block, module, stage.times, run.call)[1:]
                yield from map(Given, later)
        for original in self.originals:
            original.go_on()
        if self.originals:
            self.before |= {la.module: la.module.get_parameter("weight").data for la in stage.late}

    def lag(
        self, stage: Stage, run: PausedRun, original: PausedRun, inputs: Tensor
    ) -> Tensor | None:
        """Return what the stage's output would have to add to make up for drifted hidden states."""
        layer = stage.layers[0]
        if len(stage.layers) > 1 or layer.name not in self.added:
            return None
        lag = original.residual.float() - run.residual.float()
        lag = lag.reshape(*inputs.shape[:-1], -1)
        adder = self.added[layer.name]
        if adder is layer.module:
            return lag
        with torch.no_grad():
            return before_norm(lag, layer.module(inputs), adder)

    def finish(self) -> tuple[list[Tensor], list[Tensor]]:
        """Go on to the block's end; returns the hidden states of both streams."""
        return [run.finish() for run in self.runs], [run.finish() for run in self.originals]

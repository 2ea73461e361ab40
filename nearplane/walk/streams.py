"""Two streams of hidden states through a block: one of quantized layers, one of original layers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearplane.model.blocks import Layer
from nearplane.model.experts import Experts
from nearplane.walk.capture import Call, PausedRun, RepeatedRun, inputs_of
from nearplane.walk.expert_inputs import RoutedTokens
from nearplane.walk.hidden_states import HiddenStates
from nearplane.walk.rms_norm import before_norm
from nearplane.walk.trace import ModelTrace, Stage

BlockRun = PausedRun | RepeatedRun
Calls = Sequence[Callable[[], Call]]  # functions, one a batch, that return the block's arguments


@dataclass(frozen=True)
class StageInputs:
    """The inputs of a stage's layers in one batch.

    - `inputs`: in the quantized stream. `original`: in the original stream; None if that is not
      run.
    - `lag`: original minus quantized hidden states, where the stage's output is added to them: the
      change of the output that would make them equal. None elsewhere.
    """

    inputs: Float[Tensor, "*batch columns"]
    original: Float[Tensor, "*batch columns"] | None = None
    lag: Float[Tensor, "*batch rows"] | None = None


@dataclass
class Streams:
    """The forward passes of a block, one a batch, on the quantized and on the original stream.

    The original runs are always one stage ahead: they pass a stage before its layers are quantized
    in place. A layer that they call again later runs with its original weight.

    - `originals`: empty where only one stream is run.
    - `before`: original weights of layers that may be called again; None until they are quantized.
    - `routed`: for every mixture of experts, the tokens that enter it, of both streams.
    """

    block: nn.Module
    runs: list[BlockRun]
    originals: list[BlockRun]
    added: dict[str, nn.Module]
    before: dict[nn.Module, Tensor | None]
    routed: dict[Experts, tuple[RoutedTokens, RoutedTokens]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        trace: ModelTrace,
        index: int,
        stages: list[Stage],
        calls: Calls,
        original: Calls = (),
        paused: int | None = None,
        earlier: dict[nn.Module, Tensor] | None = None,
    ) -> "Streams":
        """Start the forward passes of block `index` on the calls of both streams.

        - `earlier`: original weights of layers that were quantized before, in another block or when
          this one was called first.
        - `paused`: for how many batches the run stays in memory from stage to stage; for the others
          it starts anew for every stage. None is all.
        """
        block = trace.blocks[index]
        stops = [stage.layers[0].module for stage in stages]
        stops += {stage.mixture.entry for stage in stages if stage.mixture is not None}
        # the residual is only tracked where an original stream will be compared with it
        names = trace.added if original else {}
        layers = [layer for stage in trace.stages[index] for layer in stage.layers]
        added = [names[layer.name] for layer in layers if layer.name in names]
        held = len(calls) if paused is None else paused
        again = [la for stage in stages for la in run_later(stage, held < len(original))]
        later = [layer.module for layer in again if original]
        before: dict[nn.Module, Tensor | None] = dict.fromkeys(later)
        before |= {
            m: w for m, w in (earlier or {}).items() if original and m in set(block.modules())
        }

        def started(call: Callable[[], Call], weights: dict[nn.Module, Tensor | None]) -> PausedRun:
            return PausedRun(block, stops, call(), added, weights)

        def run(number: int, call: Callable[[], Call], weights: dict) -> BlockRun:
            return (
                started(call, weights)
                if number < held
                else RepeatedRun(partial(started, call, weights))
            )

        runs = [run(number, call, {}) for number, call in enumerate(calls)]
        originals = [run(number, call, before) for number, call in enumerate(original)]
        return cls(block, runs, originals, names, before)

    def entered(self, mixture: Experts, states: Callable[[], HiddenStates] = list) -> HiddenStates:
        """Return the tokens that enter a mixture of experts, batch by batch.

        Call it once, before `given` for the stages of its experts.

        - `states`: makes an empty list for them.
        """
        routed = RoutedTokens(mixture, states())
        original = RoutedTokens(mixture, None)
        for runs, tokens_of_stream in ((self.originals, original), (self.runs, routed)):
            for run in runs:
                reached = run.to(mixture.entry) is not None
                tokens_of_stream.add(run.args if reached else None)
                run.rest()
        self.routed[mixture] = routed, original
        assert routed.tokens is not None
        return routed.tokens

    def to_expert(self, stage: Stage, index: int) -> Tensor | None:
        """Return the input of an expert's stage, from the tokens that `entered` has stored."""
        mixture, expert = stage.mixture, stage.expert
        if mixture is None or expert is None:
            return None
        routed, original = self.routed[mixture]
        for tokens_of_stream, runs in ((original, self.originals), (routed, self.runs)):
            if runs and tokens_of_stream.reaches(index, expert):
                runs[index].pass_by()
        return routed.inputs(index, expert, stage.layers[0].module is expert.down_proj)

    def given(self, stage: Stage) -> Iterator[StageInputs]:
        """Yield the inputs of a stage, batch by batch; then run the original stream through it."""
        module = stage.layers[0].module
        for index, run in enumerate(self.runs):
            if stage.mixture is not None and isinstance(run, RepeatedRun):
                inputs = self.to_expert(stage, index)
                yield from [] if inputs is None else [StageInputs(inputs)]
                continue
            inputs = run.to(module)
            original = self.originals[index] if self.originals else None
            twin = original.to(module) if original else None
            if inputs is not None:
                yield self.compared(stage, run, original, inputs, twin)
                if stage.times > 1:
                    # its later inputs in this run depend on outputs that are not final yet
                    later = inputs_of(self.block, module, stage.times, run.call)[1:]
                    yield from map(StageInputs, later)
            run.rest()
            if original is not None:
                original.rest()
        for original in self.originals:
            original.go_on()
        again = (layer.module for layer in stage.layers if layer.module in self.before)
        self.before |= {module: module.get_parameter("weight").data for module in again}

    def compared(
        self,
        stage: Stage,
        run: BlockRun,
        original: BlockRun | None,
        inputs: Tensor,
        twin: Tensor | None,
    ) -> StageInputs:
        """Return a stage's inputs in one batch, with those of the original run beside them."""
        if original is None:
            return StageInputs(inputs)
        if twin is None or twin.shape != inputs.shape:
            # other tokens reach this expert in the original model, so that nothing can be compared
            return StageInputs(inputs, inputs)
        return StageInputs(inputs, twin, self.lag(stage, run, original, twin))

    def lag(self, stage: Stage, run: BlockRun, original: BlockRun, inputs: Tensor) -> Tensor | None:
        """Return the lag of `StageInputs`, taken back through the norm behind the layer if any."""
        layer = stage.layers[0]
        if len(stage.layers) > 1 or layer.name not in self.added:
            return None
        if original.residual is None or run.residual is None:
            return None  # hidden states are inside of another object
        lag = original.residual.float() - run.residual.float()
        lag = lag.reshape(*inputs.shape[:-1], -1)
        adder = self.added[layer.name]
        if adder is layer.module:
            return lag
        with torch.no_grad():
            return before_norm(lag, layer.module(inputs), adder)

    def finish(self) -> Iterator[Any]:
        """Run to the block's end; yields what it returns, of the quantized runs first."""
        for runs in (self.runs, self.originals):
            for run in runs:
                yield run.finish()

    def close(self) -> None:
        """End the runs that have not ended, and free what they hold."""
        for run in (*self.runs, *self.originals):
            run.close()


def run_later(stage: Stage, repeated: bool) -> list[Layer]:
    """Return the layers of a stage that original runs may call after they were quantized.

    - `repeated`: whether some of these runs start anew for every stage.
    """
    return stage.layers if repeated or stage.times > 1 else stage.late

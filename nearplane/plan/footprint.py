"""The bytes of a run: in one process's memory, and on the disk."""

from dataclasses import dataclass
from functools import cached_property
from math import ceil

import torch
from torch import nn

from nearplane.model.compute_dtype import precise
from nearplane.model.output_head import vocabulary
from nearplane.plan.backward import HESSIAN, BackwardSize, squares_of
from nearplane.plan.device_stages import DeviceStage
from nearplane.plan.memory import Memory
from nearplane.plan.probe import ProbeSize
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import Survey
from nearplane.walk.hidden_states import pinned_bytes
from nearplane.walk.sensitivity import POSITIONS, SEQUENCES
from nearplane.walk.token_use import MOST_LOGITS
from nearplane.walk.walk import BATCH_TOKENS

CHOICE_BYTES = 8 * 8  # of a token: the numbers of the experts that it is sent to
LOSS_BYTES = 3 * 8  # of every row that is finished: loss, damped loss and bound, in float64
GROUP_BYTES = 1500  # of a file of finished layers, beside records and losses

PINNED = 2  # of a matrix that is pinned, at most: torch pins powers of two

# Bytes for every entry of a Hessian. Summing: the sum in float32, or the moments of two streams,
# see walk/input_statistics.py.
SUMMED, SUMMED_TWICE = 4, 20
TARGET = 19  # beside the moments: a factor in float64, then in float32 with the solver's copy
# the Hessian in float32 with its factor in float64, as rounding holds them, and while factoring
BASIS, FACTORING = 12, 18
ROUNDING = 16  # beside the basis: the unit factor and the sweep's products
# Bytes for every weight of the layers that share a Hessian: original, target and code.
WEIGHT = 12
TARGET_WEIGHT, LAG_WEIGHT = 18, 8
# of layers that are rounded, and written while the next ones are: original and record
WRITTEN_WEIGHT = 5
ATTENTION_WAITING = 2.5  # hidden states that wait in attention: of queries, keys, values, results
ROUNDED_WEIGHT = 24  # of the layer that is rounded now; its certificate is computed in float64

Shapes = tuple[tuple[int, int], ...]
Kind = tuple[Shapes, bool]


@dataclass(frozen=True)
class MemoryNeeds:
    """The memory of every phase of a run, in the process with most of the calibration."""

    survey: Survey
    run: RunSize

    def memory(self, by_blocks: bool, spilled: bool, paused: int, ahead: bool = False) -> Memory:
        """Return the memory of a run.

        - `by_blocks`, `spilled`, `paused`, `ahead`: as in `Offload`.
        """
        state = self.tokens * self.hidden * self.itemsize
        states = paused * self.paused_bytes
        if not spilled:
            states += 2 * self.streams * state
        if self.survey.shares:
            # the tokens that enter the experts, and their choices of experts
            states += CHOICE_BYTES * self.tokens + (0 if spilled else state)
        weights = self.weights(by_blocks, ahead)
        # what is outside of the blocks is converted to another type while the whole model runs
        phases = [(weights, self.probing)]
        if self.backward.needed:
            working = self.backward.working_bytes(self.hidden, self.width)
            phases.append((weights, working + self.converted(self.survey.compute)))
            if not spilled:
                states += self.backward.state_bytes(self.hidden, len(self.survey.blocks))
        for shapes, expert in self.kinds:
            phases.append((weights, self.summing(shapes, expert)))
            # pages of mapped files, but not blocks read ahead, are freed before the widest layers
            widest = by_blocks and not ahead and shapes[0][1] == self.widest
            held = self.rounded_weights(shapes) if widest else weights
            phases.append((held, self.rounding(shapes, expert)))
        held, working = max(phases, key=sum)
        return Memory(held, states, working + ahead * self.written)

    def on_device(self, spilled: bool, paused: int) -> Memory:
        """Return the memory of a device on which the blocks run, one at a time.

        - `spilled`: whether hidden states between blocks are kept elsewhere.
        - `paused`: as in `Offload`.
        """
        peaks = self.on_blocks(spilled, paused) + self.on_outside(spilled)
        if self.survey.method.allocates:
            peaks += self.on_probes(spilled)
        return max(peaks, key=lambda memory: memory.total)

    def on_blocks(self, spilled: bool, paused: int) -> list[Memory]:
        """Return a device's memory while the layers of a block are summed and rounded."""
        # residual and normed states, with those behind them or attention's; the sum that lags are
        # taken from; what the block was given, if it is a copy
        widths = 2 + (self.streams > 1) + spilled
        waiting = widths * self.hidden + max(self.width, ATTENTION_WAITING * self.hidden)
        states = self.streams * self.batch_tokens * self.itemsize * paused * waiting
        states += self.states_on_device(spilled)
        block = max(self.parts[1]) * self.widening
        found = []
        for stage, outside in self.device_stages:
            if not outside:
                found.append(Memory(block, states, self.passing(stage) + stage.moments, 0))
                found.append(Memory(block, states, stage.rounding, 0))
        return found

    def on_outside(self, spilled: bool) -> list[Memory]:
        """Return a device's memory while what is outside of the blocks runs or is rounded."""
        outside, states = self.parts[0] * self.widening, self.states_on_device(spilled)
        found = [Memory(outside + max(self.parts[1]) * self.widening, states, 0, 0)]
        for stage, is_outside in self.device_stages:
            if is_outside:
                found.append(Memory(outside, states, self.passing(stage) + stage.moments, 0))
                found.append(Memory(outside, states, stage.rounding, 0))
                answers = self.answering(self.batch_tokens, self.itemsize)
                found.append(Memory(outside, states, SUMMED * stage.square + answers, 0))
        if self.backward.needed:
            # what blocks return stays there until gradients went through
            kept = self.backward.state_bytes(self.hidden, len(self.survey.blocks))
            logits, graph = self.backward.on_device(self.hidden, self.width)
            found.append(Memory(outside, kept, logits, 0))
            block = max(self.parts[1]) * self.widening
            found.append(Memory(outside + block, kept, graph, 0))
        return found

    def on_probes(self, spilled: bool) -> list[Memory]:
        """Return a device's memory while disturbed copies of the model run, in float32."""
        wide = precise(self.survey.compute)
        outside, sizes = (
            part * wide.itemsize / self.survey.dtype.itemsize
            for part in (self.parts[0], max(self.parts[1]))
        )
        probe = ProbeSize(self.survey, self.run, wide.itemsize)
        states = 0 if spilled else self.output_hessians + probe.states(self.hidden)
        inside, outer = (
            [stage.drawing for stage, out in self.device_stages if out == each]
            for each in (False, True)
        )
        working = max(probe.attention, probe.expert_errors, *inside)
        return [
            Memory(outside + sizes, states, working, 0),
            Memory(outside, states, max(outer, default=0) + probe.logits, 0),
            Memory(outside, states, self.answering(probe.tokens, wide.itemsize), 0),
        ]

    def states_on_device(self, spilled: bool) -> int | float:
        """Return the bytes of hidden states between blocks, and of output Hessians, there."""
        if spilled:
            return 0
        copies = self.streams + bool(self.survey.shares)
        return copies * self.tokens * self.hidden * self.itemsize + self.output_hessians

    def passing(self, stage: DeviceStage) -> int | float:
        """Return the bytes of the batch that runs, and of its inputs in float32."""
        columns = stage.shapes[0][1]
        states = 2 * self.width * self.itemsize + 4 * self.streams * columns
        return self.batch_tokens * (states + 8 * self.hidden * (self.streams > 1))

    def answering(self, tokens: int | float, itemsize: int) -> int | float:
        """Return the bytes of a batch's answers, by which rows of the output head get steps."""
        if not self.survey.method.scales_rows:
            return 0
        # logits, in float32, and their softmax
        copies = itemsize + 4 * (itemsize < 4) + 4
        return copies * min(tokens * vocabulary(self.survey.model), MOST_LOGITS)

    @cached_property
    def device_stages(self) -> set[tuple[DeviceStage, bool]]:
        """The different stages, and whether they are outside of the blocks."""
        outside = set(self.survey.selection.layers_outside(self.survey.model))
        weighed = set(self.backward.layers) - outside if self.backward.needed else set()
        found = set()
        for layers in self.survey.stages:
            numbers = max(squares_of(la) if la in weighed else 0 for la in layers)
            outer = layers[0] in outside
            targets = self.has_targets(layers[0].name in self.survey.shares) and not outer
            shapes = tuple(layer.shape for layer in layers)
            found.add((DeviceStage(shapes, self.survey.method, targets, numbers), outer))
        return found

    def beside_device(
        self, by_blocks: bool, on_host: bool, factors: bool = False, ahead: bool = False
    ) -> Memory:
        """Return the memory of a process whose blocks run on another device.

        - `by_blocks`, `on_host`, `ahead`: as in `Offload`. `factors`: whether Hessians are factored
          here.
        """
        batch = pinned_bytes(self.batch_tokens * self.hidden * self.itemsize)
        # the tokens that enter experts are kept there, too
        states = (2 * self.streams + bool(self.survey.shares)) * self.batches * batch
        states = states + PINNED * self.output_hessians if on_host else 0
        largest = max(rows * columns for shapes, _ in self.kinds for rows, columns in shapes)
        working = ROUNDED_WEIGHT * largest + FACTORING * self.widest**2 * factors
        weights = self.weights(by_blocks)
        if ahead:
            # copies of the block that runs and of the next one
            weights += 2 * self.pinned_block - by_blocks * max(self.parts[1])
            working += self.written
        return Memory(weights, states, working)

    @cached_property
    def written(self) -> int | float:
        """Bytes of the layers that are written while the next ones are rounded."""
        return WRITTEN_WEIGHT * max(weights_of(shapes) for shapes, _ in self.kinds)

    @cached_property
    def pinned_block(self) -> int | float:
        """Bytes of the largest block when each of its tensors is pinned."""
        scale = self.survey.dtype.itemsize / next(self.survey.model.parameters()).itemsize
        blocks = self.survey.blocks
        return max(sum(pinned_bytes(scale * t.nbytes) for t in b.parameters()) for b in blocks)

    @property
    def output_hessians(self) -> int:
        """Bytes of all output Hessians, which are kept until their layers are rounded."""
        return HESSIAN * self.backward.squares if self.backward.needed else 0

    @cached_property
    def backward(self) -> BackwardSize:
        """What output Hessians take."""
        return BackwardSize(self.survey, self.run)

    @cached_property
    def per_batch(self) -> int:
        """Sequences of a batch."""
        return max(1, BATCH_TOKENS // self.run.length)

    @cached_property
    def sequences(self) -> int:
        return ceil(self.run.sequences / self.run.ranks)

    @property
    def tokens(self) -> int:
        return self.sequences * self.run.length

    @property
    def batches(self) -> int:
        return ceil(self.sequences / self.per_batch)

    @property
    def batch_tokens(self) -> int:
        return min(self.tokens, self.per_batch * self.run.length)

    @property
    def streams(self) -> int:
        """2 if there is an original stream of hidden states beside the quantized one, else 1."""
        return 2 if self.survey.method.compensates else 1

    @property
    def itemsize(self) -> int:
        """Bytes of a number in the type of products."""
        return self.survey.compute.itemsize

    @property
    def widening(self) -> float:
        """Bytes of a weight in the type of products, over its stored bytes."""
        return self.itemsize / self.survey.dtype.itemsize

    def converted(self, dtype: torch.dtype) -> int | float:
        """Return the bytes of what is outside of blocks, converted to a type; 0 if it has it."""
        stored = self.survey.dtype
        return 0 if dtype == stored else self.parts[0] * dtype.itemsize / stored.itemsize

    @cached_property
    def width(self) -> int | float:
        """Columns of the widest input; of an expert's layer, times the share of tokens it gets."""
        return max(layer.shape[1] * self.survey.share(layer) for layer in self.survey.layers)

    @cached_property
    def hidden(self) -> int | float:
        return self.survey.number("hidden_size", 0) or self.width

    @property
    def paused_bytes(self) -> int | float:
        """Bytes of a paused batch: residual, normed and mixed states, and two of the widest."""
        states = (4 * self.hidden + 2 * self.width) * self.itemsize
        if self.survey.shares:
            states += 4 * self.hidden  # experts add up in float32
        return self.streams * self.batch_tokens * states

    @property
    def running_bytes(self) -> int | float:
        """Bytes of the batch that runs, its inputs in float32, and a paused one beside it."""
        states = (4 * self.hidden + 4 * self.width) * self.itemsize
        states += 4 * self.streams * self.width
        if self.streams > 1:
            states += 8 * self.hidden
        return self.batch_tokens * states + (self.paused_bytes if self.streams > 1 else 0)

    def weights(self, by_blocks: bool, ahead: bool = False) -> int | float:
        """Return the bytes of weights in memory: those loaded, and one block of rounded ones.

        Rounded weights are in the type of products.

        - `ahead`: whether the next one of the blocks that are loaded one by one is read meanwhile.
        """
        outside, sizes = self.parts
        rounded = max(sizes) * self.widening
        loaded = (1 + ahead) * max(sizes) if by_blocks else sum(sizes)
        return outside + loaded + rounded

    @cached_property
    def parts(self) -> tuple[int | float, list[int | float]]:
        """The bytes outside of blocks, and of every block."""
        blocks = self.survey.blocks
        scale = self.survey.dtype.itemsize / next(self.survey.model.parameters()).itemsize
        sizes = [scale * bytes_of(block) for block in blocks]
        return scale * bytes_of(self.survey.model) - sum(sizes), sizes

    @cached_property
    def kinds(self) -> set[Kind]:
        """The different stages: the shapes of their layers, and whether they are of an expert."""
        return {
            (tuple(layer.shape for layer in stage), stage[0].name in self.survey.shares)
            for stage in self.survey.stages
        }

    @property
    def widest(self) -> int:
        return self.survey.widest

    def rounded_weights(self, shapes: Shapes) -> int | float:
        """Return the bytes of weights while the widest layers of a block on disk are rounded.

        These are the block's rounded layers, and the widest ones as they are stored.
        """
        stored = self.survey.dtype.itemsize * weights_of(shapes)
        return max(self.parts[1]) * self.widening + stored

    def summing(self, shapes: Shapes, expert: bool) -> int | float:
        """Return the bytes that a stage takes while its inputs are summed."""
        square = shapes[0][1] ** 2
        return self.running_bytes + (
            self.summed_twice(shapes) if self.has_targets(expert) else SUMMED * square
        )

    def rounding(self, shapes: Shapes, expert: bool) -> int | float:
        """Return the bytes that a stage's targets, factor and rounding take."""
        square, weights = shapes[0][1] ** 2, weights_of(shapes)
        largest = max(rows * columns for rows, columns in shapes)
        factored = FACTORING * square + WEIGHT * weights
        rounded = (BASIS + ROUNDING) * square + WEIGHT * weights + ROUNDED_WEIGHT * largest
        if not self.has_targets(expert):
            return max(factored, rounded)
        targets = self.summed_twice(shapes) + TARGET * square + TARGET_WEIGHT * weights
        return max(factored, rounded, targets)

    def summed_twice(self, shapes: Shapes) -> int | float:
        """Return the bytes of the moments of two streams."""
        lagged = LAG_WEIGHT * weights_of(shapes) if len(shapes) == 1 else 0
        return SUMMED_TWICE * shapes[0][1] ** 2 + lagged

    def has_targets(self, expert: bool) -> bool:
        """Whether a stage is rounded towards targets."""
        return self.survey.method.compensates and not expert

    @cached_property
    def probing(self) -> int | float:
        """Bytes of the logits of all disturbed copies of a block while they are compared.

        And of the weights that are converted: a block, if the walk does not convert it, and others.
        """
        compute = self.survey.compute
        if not self.survey.method.allocates:
            return self.converted(compute)
        blocks = self.survey.blocks
        words = vocabulary(self.survey.model)
        copies = ceil(self.survey.units / len(blocks)) + 1
        logits = 2 * 4 * copies * SEQUENCES * POSITIONS * words
        dtype = precise(compute)
        wider = (dtype.itemsize - compute.itemsize) / self.survey.dtype.itemsize
        return logits + self.converted(dtype) + max(self.parts[1]) * wider


def weights_of(shapes: Shapes) -> int:
    """Return how many weights matrices of these shapes have together."""
    return sum(rows * columns for rows, columns in shapes)


def bytes_of(module: nn.Module) -> int:
    """Return the bytes of a module's numbers, tied ones counted once."""
    return sum(parameter.nbytes for parameter in module.parameters())


def unfinished_bytes(survey: Survey) -> int | float:
    """Return the bytes of the folder of finished layers when the last one is finished."""
    rows = sum(layer.shape[0] for layer in survey.layers)
    return survey.record_bytes + LOSS_BYTES * rows + GROUP_BYTES * len(survey.stages)

"""The bytes of a run: in one process's memory, and on the disk."""

from dataclasses import dataclass
from functools import cached_property
from math import ceil

from torch import nn

from nearplane.model.output_head import vocabulary
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import Survey
from nearplane.walk.sensitivity import POSITIONS, SEQUENCES
from nearplane.walk.walk import BATCH_TOKENS

BASE_BYTES = 0.75e9  # Python, torch, transformers, and freed blocks that the allocator keeps
CHOICE_BYTES = 8 * 8  # of a token: the numbers of the experts that it is sent to
LOSS_BYTES = 3 * 8  # of every row: loss, damped loss and bound, in float64
GROUP_BYTES = 1500  # the rest of a file of layers that were rounded together

# bytes for every entry of a Hessian: moments and a factor on the way, see drift.py and factor.py
SUMMED, SUMMED_TWICE = 4, 20
AIMED = 19  # beside the moments: a factor in float64, then in float32 with the solver's copy
FACTORED, HELD = 18, 12  # beside what is held later: the Hessian in float32, its factor in float64
ROUNDED = 16
# bytes for every weight of the layers that share a Hessian: original, target and code
KEPT = 12
AIMED_WEIGHT, LAGGED_WEIGHT = 18, 8
ROUNDED_WEIGHT = 24  # of the layer that is rounded now; its certificate is computed in float64

Shapes = tuple[tuple[int, int], ...]
Kind = tuple[Shapes, bool]


@dataclass(frozen=True)
class Memory:
    """The parts of one process's memory at its peak, bytes.

    - `weights`: of the model, as far as they are in memory. `states`: hidden states of its share
      of the calibration, and what runs of a block compute from them.
    - `working`: for the layers that need most. `base`: Python and its libraries.
    """

    weights: int | float
    states: int | float
    working: int | float
    base: int | float = BASE_BYTES

    @property
    def total(self) -> int | float:
        return self.weights + self.states + self.working + self.base

    def sentence(self) -> str:
        """Return the parts in gigabytes."""
        parts = ("weights", "states", "working", "base")
        return ", ".join(f"{part} {getattr(self, part) / 1e9:.2f} GB" for part in parts)


@dataclass(frozen=True)
class MemoryNeeds:
    """What the parts of a run need in one process, the one with most of the calibration."""

    found: Survey
    run: RunSize

    def memory(self, by_blocks: bool, spilled: bool, paused: int) -> Memory:
        """Return the memory of a run.

        - `by_blocks`: one block's weights are in memory at a time; `spilled`: no hidden states are.
        - `paused`: how many batches wait in memory from stage to stage.
        """
        state = self.tokens * self.hidden * self.itemsize
        states = paused * self.waiting
        if not spilled:
            states += 2 * self.streams * state
        if self.found.shares:
            # what enters the experts, and where it is sent
            states += CHOICE_BYTES * self.tokens + (0 if spilled else state)
        weights = self.weights(by_blocks)
        # what is outside of the blocks is converted while the model runs as a whole
        phases = [(weights, self.probing + self.converted)]
        for shapes, expert in self.kinds:
            phases.append((weights, self.summing(shapes, expert)))
            widest = by_blocks and shapes[0][1] == self.widest
            # pages of mapped files are let go before the widest layers are rounded
            held = self.rounded_weights(shapes) if widest else weights
            phases.append((held, self.rounding(shapes, expert)))
        held, working = max(phases, key=sum)
        return Memory(held, states, working)

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
        """Original layers run beside quantized ones where these make up for drift."""
        return 2 if self.found.method.compensates else 1

    @property
    def itemsize(self) -> int:
        """Of the type that is computed in."""
        return self.found.compute.itemsize

    @property
    def widening(self) -> float:
        """How many times as large a weight is in the type that is computed in."""
        return self.itemsize / self.found.dtype.itemsize

    @property
    def converted(self) -> int | float:
        """Of what is outside of blocks, in the type that is computed in, where it is another."""
        same = self.found.compute == self.found.dtype
        return 0 if same else self.parts[0] * self.widening

    @cached_property
    def width(self) -> int | float:
        """Of the widest state, as most tokens have it."""
        return max(layer.shape[1] * self.found.share(layer) for layer in self.found.layers)

    @cached_property
    def hidden(self) -> int | float:
        return getattr(self.found.config, "hidden_size", self.width)

    @property
    def waiting(self) -> int | float:
        """Of a batch that waits: residual, normed and mixed states, and two of the widest."""
        states = (4 * self.hidden + 2 * self.width) * self.itemsize
        if self.found.shares:
            states += 4 * self.hidden  # experts add up in float32
        return self.streams * self.batch_tokens * states

    @property
    def under_way(self) -> int | float:
        """Of a batch that is computed: states of a block, its inputs in float32; one that waits."""
        states = (4 * self.hidden + 4 * self.width) * self.itemsize
        states += 4 * self.streams * self.width
        if self.streams > 1:
            states += 8 * self.hidden
        return self.batch_tokens * states + (self.waiting if self.streams > 1 else 0)

    def weights(self, by_blocks: bool) -> int | float:
        """Return the bytes of weights in memory; a block's are there as stored, and rounded.

        Rounded ones are in the type that is computed in.
        """
        outside, sizes = self.parts
        rounded = max(sizes) * self.widening
        return outside + (max(sizes) if by_blocks else sum(sizes)) + rounded

    @cached_property
    def parts(self) -> tuple[int | float, list[int | float]]:
        """The bytes outside of blocks, and of every block."""
        blocks = self.found.blocks
        scale = self.found.dtype.itemsize / next(self.found.model.parameters()).itemsize
        sizes = [scale * bytes_of(block) for block in blocks]
        return scale * bytes_of(self.found.model) - sum(sizes), sizes

    @cached_property
    def kinds(self) -> set[Kind]:
        """The shapes of the layers of a stage, and whether they are of an expert."""
        return {
            (tuple(layer.shape for layer in stage), stage[0].name in self.found.shares)
            for stage in self.found.stages
        }

    @property
    def widest(self) -> int:
        return self.found.widest

    def rounded_weights(self, shapes: Shapes) -> int | float:
        """Return what is in memory of a block that is on disk while its widest layers are rounded.

        Those that are rounded already, and these as the file has them.
        """
        stored = self.found.dtype.itemsize * weights_of(shapes)
        return max(self.parts[1]) * self.widening + stored

    def summing(self, shapes: Shapes, expert: bool) -> int | float:
        """Return what a stage needs while its inputs are summed."""
        square = shapes[0][1] ** 2
        return self.under_way + (
            self.summed_twice(shapes) if self.aimed(expert) else SUMMED * square
        )

    def rounding(self, shapes: Shapes, expert: bool) -> int | float:
        """Return what a stage needs when its inputs are summed: for targets, factor, rounding."""
        square, weights = shapes[0][1] ** 2, weights_of(shapes)
        largest = max(rows * columns for rows, columns in shapes)
        factored = FACTORED * square + KEPT * weights
        rounded = (HELD + ROUNDED) * square + KEPT * weights + ROUNDED_WEIGHT * largest
        if not self.aimed(expert):
            return max(factored, rounded)
        aimed = self.summed_twice(shapes) + AIMED * square + AIMED_WEIGHT * weights
        return max(factored, rounded, aimed)

    def summed_twice(self, shapes: Shapes) -> int | float:
        """Return the bytes of the moments of two streams."""
        lagged = LAGGED_WEIGHT * weights_of(shapes) if len(shapes) == 1 else 0
        return SUMMED_TWICE * shapes[0][1] ** 2 + lagged

    def aimed(self, expert: bool) -> bool:
        return self.found.method.compensates and not expert

    @cached_property
    def probing(self) -> int | float:
        """Of the predictions of all copies that a block's disturbed layers end in."""
        if not self.found.method.allocates:
            return 0
        blocks = self.found.blocks
        words = vocabulary(self.found.model)
        copies = ceil(self.found.units / len(blocks)) + 1
        return 2 * 4 * copies * SEQUENCES * POSITIONS * words


def weights_of(shapes: Shapes) -> int:
    return sum(rows * columns for rows, columns in shapes)


def bytes_of(module: nn.Module) -> int:
    """Return the bytes of a module's numbers, tied ones counted once."""
    return sum(parameter.nbytes for parameter in module.parameters())


def unfinished_bytes(found: Survey) -> int | float:
    """Return what the folder of finished layers holds at the end, when the checkpoint is whole."""
    rows = sum(layer.shape[0] for layer in found.layers)
    return found.record_bytes + LOSS_BYTES * rows + GROUP_BYTES * len(found.stages)

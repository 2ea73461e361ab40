"""The work and the memory of output Hessians: backward passes, see walk/output_hessians.py."""

from dataclasses import dataclass
from math import ceil

from nearplane.model.blocks import Layer
from nearplane.model.output_head import vocabulary
from nearplane.plan.part import Part
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import Survey
from nearplane.plan.throughput import MOVED, attended
from nearplane.walk.output_hessians import MOST_LOGITS, TOKENS, blocks_of

PASSES = 4  # a forward pass, another before the gradients, and twice as much for these
HESSIAN = 4  # bytes of a number of an output Hessian
LOGITS = 16  # bytes for every logit: itself, its gradient, probabilities, and a draw of them
# numbers a token that the graph of a block keeps, in units of its hidden and its widest states
GRAPH_HIDDEN, GRAPH_WIDEST = 16, 8


@dataclass(frozen=True)
class BackwardSize:
    """How much backward passes compute and hold; nothing for a method without output Hessians."""

    survey: Survey
    run: RunSize

    @property
    def needed(self) -> bool:
        return self.survey.method.weighs_outputs

    @property
    def layers(self) -> list[Layer]:
        """The layers whose outputs are weighed: those of the blocks, but for experts."""
        survey = self.survey
        others = set(survey.selection.layers_outside(survey.model))
        return [la for la in survey.layers if la.name not in survey.shares and la not in others]

    @property
    def sequences(self) -> int:
        """How many sequences gradients are taken of, by all processes."""
        return min(self.run.sequences, max(1, TOKENS // self.run.length))

    @property
    def tokens(self) -> int:
        return self.sequences * self.run.length

    @property
    def share(self) -> float:
        """The largest share of one process."""
        return ceil(self.sequences / self.run.ranks) / self.sequences

    @property
    def logits(self) -> int | float:
        """How many logits a sequence has whose loss is taken."""
        return min(self.run.length * vocabulary(self.survey.model), MOST_LOGITS)

    @property
    def squares(self) -> int:
        """The numbers of all output Hessians."""
        return sum(squares_of(layer) for layer in self.layers)

    def state_bytes(self, hidden: int | float, blocks: int) -> int | float:
        """Return the bytes of what all blocks return, and of the output Hessians of one process."""
        states = blocks * self.share * self.tokens * hidden * self.survey.compute.itemsize
        return states + HESSIAN * self.squares

    def working_bytes(self, hidden: int | float, width: int | float) -> int | float:
        """Return the bytes of one block's graph for one sequence, and of a sequence's logits."""
        itemsize, heads = self.survey.compute.itemsize, self.heads
        graph = self.run.length * (GRAPH_HIDDEN * hidden + GRAPH_WIDEST * width) * itemsize
        graph += 3 * heads * self.run.length**2 * itemsize
        return max(graph, LOGITS * self.logits)

    def on_device(self, hidden: int | float, width: int | float) -> tuple[int | float, int | float]:
        """Return the bytes of a sequence's logits, and of one block's graph, on an accelerator.

        Attention is computed there without all of its scores in memory.
        """
        graph = self.run.length * (GRAPH_HIDDEN * hidden + GRAPH_WIDEST * width)
        return LOGITS * self.logits, graph * self.survey.compute.itemsize

    @property
    def heads(self) -> int:
        return self.survey.number("num_attention_heads", 1)

    def parts(self, hidden: int, blocks: int) -> list[Part]:
        """Return the passes forwards and backwards, and the output Hessians with their factors."""
        if not self.needed:
            return []
        tokens, share = self.tokens, self.share
        products = PASSES * 2 * self.survey.active * tokens
        products += 4 * self.sequences * self.logits * hidden
        moved = MOVED * hidden * self.survey.compute.itemsize * blocks * tokens
        attention = attended(self.run.length, hidden) * blocks * tokens
        launches = PASSES * self.sequences * self.survey.launches
        factors = sum(cubes_of(layer) / 3 for layer in self.layers)
        return [
            Part("gradients", "forward_flops", products, share, beside={"launches": launches}),
            Part("gradients", "attention_flops", PASSES * attention, share),
            Part("gradients", "moved_bytes", PASSES * moved, share),
            Part("gradients", "gram_flops", 2 * tokens * self.squares, share),
            Part("gradients", "factor_flops", factors),
        ]

    def between_rows(self, sweeps: int | float) -> list[Part]:
        """Return what rows take to make up for each other in so many sweeps, by every process."""
        if not self.needed:
            return []
        sizes = sum(squares_of(layer) * layer.shape[1] for layer in self.layers)
        return [Part("rounding", "float32_flops", (sweeps + 1) * sizes, name="errors between rows")]


def squares_of(layer: Layer) -> int:
    """Return the numbers of a layer's output Hessian."""
    return sum((rows.stop - rows.start) ** 2 for rows in blocks_of(layer.shape[0]))


def cubes_of(layer: Layer) -> int:
    """Return the sum over the blocks of a layer's output Hessian of their rows³."""
    return sum((rows.stop - rows.start) ** 3 for rows in blocks_of(layer.shape[0]))

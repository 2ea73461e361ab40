"""Predict the flops, bytes and matrices of each part of a run, and how processes divide them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple

from nearplane.codes.alphabet import PIECE
from nearplane.lattice.cross_target import RIDGES
from nearplane.methods.rate import SAMPLE_WEIGHTS
from nearplane.model.blocks import Layer
from nearplane.model.compute_dtype import precise
from nearplane.model.output_head import vocabulary
from nearplane.plan.backward import BackwardSize
from nearplane.plan.part import FIRST, PLAIN, OffloadCost, Part
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import Survey
from nearplane.plan.throughput import MOVED, TRIANGLE_SHARE, MethodTrial, attended
from nearplane.rows import TILE
from nearplane.walk.expert_hessians import ENOUGH, borrowed
from nearplane.walk.hessian import NARROW, STRIPES
from nearplane.walk.sensitivity import HESSIAN_TOKENS, POSITIONS, SEQUENCES
from nearplane.walk.sensitivity import LENGTH as PROBED_LENGTH

FORWARDS = 1.1  # passes of each token through all layers: one, and something for the trace
GRAM_SHARE = (STRIPES + 1) / (2 * STRIPES)  # of the full product that a wide Hessian's sum takes
TRIANGLE = 2  # a product or a solve with a triangle is about half as fast as a product of squares
# What targets take, in units of rows · n², see lattice/cross_target.py. Products: the gradients on
# the fitted, the held-out and all tokens, and a curvature for every ridge. Triangular solves: two
# for every ridge tried, and two for the one that is taken.
TARGET_PRODUCTS = (3 + len(RIDGES)) * 2 + (len(RIDGES) + 1) * 2 * TRIANGLE
# float32 numbers a weight that processes send each other for them: the gradients on fitted and on
# held-out tokens, a move for every ridge, and for the ridge that is taken a gradient and a move
TARGET_BYTES = 4 * (2 + len(RIDGES) + 2)
REPORTED = 2  # flops over rows · n²: a layer's energy, for its report
DRAWN = TRIANGLE  # flops over rows · n²: an error drawn for probing
# time of drawing an error over the time that quantizing any matrix takes, however small it is
DRAWN_MATRICES = 0.5
CODE_BYTES, FACTOR_BYTES, SUM_BYTES = 4, 8, 4


class Kind(NamedTuple):
    """The properties on which a layer's cost depends; a stage has those of its first layer.

    - `alone`: whether it is the only one of its stage.
    - `expert`: whether it belongs to an expert. `share`: the share of all tokens that it gets.
    """

    rows: int
    columns: int
    alone: bool
    expert: bool
    share: int | float

    @property
    def size(self) -> int | float:
        return float(self.rows) * self.columns**2


OfKind = Callable[[Kind], Any]
size_of, rows_of = attrgetter("size"), attrgetter("rows")


def weights_of(kind: Kind) -> int:
    """Return the weights of a layer of this kind."""
    return kind.rows * kind.columns


@dataclass(frozen=True)
class Sizes:
    """Sums over a model's layers and stages to which the work is proportional."""

    survey: Survey
    run: RunSize

    def kind(self, layer: Layer, alone: bool = False) -> Kind:
        expert = layer.name in self.survey.shares
        return Kind(*layer.shape, alone, expert, self.survey.share(layer))

    @cached_property
    def layers(self) -> Counter[Kind]:
        return Counter(map(self.kind, self.survey.layers))

    @cached_property
    def stages(self) -> Counter[Kind]:
        return Counter(self.kind(stage[0], len(stage) == 1) for stage in self.survey.stages)

    @cached_property
    def hidden(self) -> int:
        widest = max(kind.columns for kind in self.layers)
        return self.survey.number("hidden_size", widest)

    @property
    def blocks(self) -> int:
        return self.survey.number("num_hidden_layers", 1)

    @property
    def streams(self) -> int:
        return 2 if self.survey.method.compensates else 1

    @property
    def state_bytes(self) -> int | float:
        """Bytes of the hidden states between two blocks, of all streams and tokens."""
        return self.streams * self.run.tokens * self.hidden * self.survey.compute.itemsize

    def rows_by_squares(self, drifted: bool = False) -> int | float:
        """Return Σ rows · n²; `drifted`: without layers of experts."""
        kinds = self.layers.items()
        return sum(count * kind.size for kind, count in kinds if not (drifted and kind.expert))

    def busiest(self, amount: OfKind, things: OfKind, grain: int = TILE) -> float:
        """Return the largest share of Σ amount that one process has.

        - `things`: how many of a layer's rows or weights are divided, in whole grains.
        """
        kinds = self.layers.items()
        parts = [
            (n * amount(kind), max(self.run.of_rows(things(kind), grain))) for kind, n in kinds
        ]
        return sum(part * share for part, share in parts) / sum(part for part, _ in parts)

    @property
    def drifted(self) -> int:
        """How many weights are rounded towards targets: all but those of experts."""
        kinds = self.layers.items()
        return sum(n * kind.rows * kind.columns for kind, n in kinds if not kind.expert)

    @property
    def inside(self) -> float:
        """The share of the model's numbers that is in its blocks."""
        numbers = sum(parameter.numel() for parameter in self.survey.blocks.parameters())
        return numbers / (self.survey.quantized + self.survey.unquantized)

    def moments(self, stage: Kind) -> tuple[int | float, int | float]:
        """Return the flops per token of a stage's sums, and how many numbers these sums hold."""
        n = stage.columns
        gram = 2 * n**2 * (GRAM_SHARE if n > NARROW else 1)
        if not self.survey.method.compensates or stage.expert:
            return gram, n**2
        # one sum more where the output of a single layer is added to hidden states
        lag = stage.rows * n if stage.alone and stage.rows == self.hidden else 0
        return gram + 2 * n**2 + 2 * lag, 2 * (2 * n**2 + lag)

    def hessian_flops(self) -> int | float:
        tokens = self.run.tokens
        return sum(
            count * self.moments(stage)[0] * tokens * stage.share
            for stage, count in self.stages.items()
        )

    def summed(self) -> int | float:
        """Return the numbers in all sums."""
        return sum(count * self.moments(stage)[1] for stage, count in self.stages.items())

    def lent_flops(self) -> tuple[int | float, int | float]:
        """Return the flops of forward passes and sums for experts that few tokens reach."""
        forward = sums = 0.0
        for stage, count in self.stages.items():
            n = stage.columns
            own = round(self.run.tokens * stage.share)
            if stage.expert and stage.rows == self.hidden and borrowed(own, n):
                tokens = count * min(ENOUGH * n, self.run.tokens)
                forward += 4 * tokens * stage.rows * n  # gate and up
                sums += self.moments(stage)[0] * tokens
        return forward, sums

    def factors(self, again: int = 0) -> int | float:
        """Return the flops of one factor a stage, and of `again` more where inputs drift."""
        return sum(
            count * stage.columns**3 / 3 * (1 if stage.expert else 1 + again)
            for stage, count in self.stages.items()
        )

    def sampled(self) -> int | float:
        """Return how many weights are in the samples that predict rates (`methods/rate.py`)."""
        kinds = ((kind.rows * kind.columns, count) for kind, count in self.layers.items())
        return sum(count * min(n, max(SAMPLE_WEIGHTS, n / 20)) for n, count in kinds)


def parts_of(
    survey: Survey, run: RunSize, trial: MethodTrial, offload: OffloadCost = PLAIN
) -> list[Part]:
    """Return all parts of a run; those of one group follow each other."""
    sizes = Sizes(survey, run)
    parts = [
        *reading(sizes, offload),
        *calibration(sizes),
        *repeated(sizes, offload),
        *hessians(sizes),
    ]
    parts += BackwardSize(survey, run).parts(sizes.hidden, sizes.blocks)
    if survey.method.allocates:
        parts += probing(sizes, trial)
    parts += factoring(sizes)
    if survey.method.compensates:
        parts.append(targets(sizes))
    parts += [*rounding(sizes, trial), *coding(sizes, trial)]
    if run.ranks > 1:
        parts += exchange(sizes, trial)
    return [*parts, *writing(sizes, offload)]


def reading(sizes: Sizes, offload: OffloadCost) -> list[Part]:
    """Every process reads all weights: to check them, to measure sensitivities and to round them.

    Twice for gradients; of blocks on disk once more to trace them, and once by the first process to
    store what is not quantized. All but the first two may be beside the work.
    """
    times = 3 if sizes.survey.method.allocates else 2
    times += 2 * sizes.survey.method.weighs_outputs
    # the check computes too little for the reading of a block to be beside it
    ahead = (times - 1) * sizes.inside * sizes.survey.model_bytes if offload.reads else 0
    if offload.by_blocks:
        times = 1 + times * sizes.inside
    amount = times * sizes.survey.model_bytes
    parts = [Part("reading", rate, amount - ahead) for rate in ("read_bytes", "host_bytes")]
    if offload.reads:
        parts += [Part("reading", r, ahead, beside=True) for r in ("read_bytes", "host_bytes")]
    if offload.by_blocks:
        whole = sizes.survey.model_bytes * sizes.inside
        parts.append(Part("reading", "read_bytes", whole, FIRST))
    if offload.spilled:
        times = sizes.blocks + offload.again * len(sizes.survey.stages)
        amount = times * sizes.state_bytes
        parts.append(Part("reading", "read_bytes", amount, max(sizes.run.of_sequences())))
    return parts


def writing(sizes: Sizes, offload: OffloadCost) -> list[Part]:
    """The first process writes the checkpoint and the folder of finished layers."""
    records = 2 * sizes.survey.record_bytes if offload.writes else 0
    amount = 2 * sizes.survey.stored_bytes - records
    parts = [Part("writing", "write_bytes", amount, FIRST)]
    if offload.writes:
        parts.append(Part("writing", "write_bytes", records, FIRST, beside=True))
    if offload.spilled:
        amount = sizes.blocks * sizes.state_bytes
        parts.append(Part("writing", "write_bytes", amount, max(sizes.run.of_sequences())))
    return parts


def calibration(sizes: Sizes) -> list[Part]:
    """Return the forward passes of all streams: products, attention, and norms and activations."""
    survey, run = sizes.survey, sizes.run
    share = max(run.of_sequences())
    tokens = run.tokens * sizes.streams
    attention = attended(run.length, sizes.hidden) * sizes.blocks * tokens
    moved = MOVED * sizes.hidden * survey.compute.itemsize * sizes.blocks * tokens
    products = FORWARDS * 2 * survey.active * tokens + sizes.lent_flops()[0]
    return [
        Part("calibration", "forward_flops", products, share),
        Part("calibration", "attention_flops", attention, share),
        Part("calibration", "moved_bytes", moved, share),
    ]


def repeated(sizes: Sizes, offload: OffloadCost) -> list[Part]:
    """A repeated forward pass goes through half of its block on average, once for every stage."""
    # the tokens that enter experts are kept, so that all experts of a block count as one stage
    shares = sizes.survey.shares
    stages = sum(stage[0].name not in shares for stage in sizes.survey.stages)
    times = offload.again * (stages / sizes.blocks + bool(shares)) / 2
    if not times:
        return []
    return [
        Part("calibration again", part.rate, times * part.amount, part.share)
        for part in calibration(sizes)
    ]


def hessians(sizes: Sizes) -> list[Part]:
    """Return the sums of x xᵀ, over the tokens that each process has."""
    amount = sizes.hessian_flops() + sizes.lent_flops()[1]
    return [Part("Hessians", "gram_flops", amount, max(sizes.run.of_sequences()))]


def probing(sizes: Sizes, trial: MethodTrial) -> list[Part]:
    """Every process disturbs every layer and runs the later blocks: half of all on average."""
    survey = sizes.survey
    tokens = survey.units * SEQUENCES * PROBED_LENGTH
    head = 2 * survey.units * SEQUENCES * POSITIONS * vocabulary(survey.model) * sizes.hidden
    dtype = precise(survey.compute)
    products = "forward_flops" if dtype == survey.compute else "float32_flops"
    moved = MOVED * sizes.hidden * dtype.itemsize * sizes.blocks * tokens / 2
    attention = attended(PROBED_LENGTH, sizes.hidden) * sizes.blocks * tokens / 2
    few = min(HESSIAN_TOKENS, sizes.run.tokens) / sizes.run.tokens
    return [
        Part("probing", products, tokens * survey.active + head),
        Part("probing", "attention_flops", attention),
        Part("probing", "moved_bytes", moved),
        Part("probing", "gram_flops", few * sizes.hessian_flops()),
        Part("probing", "factor_flops", sizes.factors()),
        Part("probing", "coded_weights", sizes.sampled()),
        Part("probing", "coded_matrices", DRAWN_MATRICES * len(survey.layers)),
        Part("probing", "float32_flops", DRAWN * sizes.rows_by_squares()),
    ]


def factoring(sizes: Sizes) -> list[Part]:
    """Every process computes every factor, and takes that of the first process."""
    again = len(RIDGES) + 1 if sizes.survey.method.compensates else 0
    return [Part("factors", "factor_flops", sizes.factors(again))]


def targets(sizes: Sizes) -> Part:
    """Targets are computed by rows; the factors of their ridges are counted with the others."""
    amount = TARGET_PRODUCTS * sizes.rows_by_squares(drifted=True)
    return Part("targets", "float32_flops", amount, sizes.busiest(size_of, rows_of))


def rounding(sizes: Sizes, trial: MethodTrial) -> list[Part]:
    """Return the sweeps and the certificates, which processes divide by rows."""
    size = sizes.rows_by_squares()
    share = sizes.busiest(size_of, rows_of)
    checked = trial.checks * size
    checked += sizes.survey.method.target_certificates * sizes.rows_by_squares(drifted=True)
    return [
        Part("rounding", "solve_flops", trial.sweeps * size, share),
        Part("rounding", "float64_flops", 2 * TRIANGLE_SHARE * checked, share),
        *BackwardSize(sizes.survey, sizes.run).between_rows(trial.sweeps),
    ]


def coding(sizes: Sizes, trial: MethodTrial) -> list[Part]:
    """Searches for the steps, and packing: by rows, by pieces of integers, or by every process.

    How the method's time divides among these was measured in its trial.
    """
    survey = sizes.survey
    size = sizes.rows_by_squares()
    by_rows = sizes.busiest(weights_of, rows_of)
    by_pieces = sizes.busiest(weights_of, weights_of, PIECE)
    of_rest = survey.quantized / trial.rest_s
    solved = survey.method.triangular_solves * TRIANGLE * size
    return [
        Part("coding", "coded_weights", of_rest * trial.rows_s, by_rows),
        Part("coding", "coded_weights", of_rest * trial.pieces_s, by_pieces),
        Part("coding", "coded_weights", of_rest * trial.each_s),
        Part("coding", "coded_matrices", len(survey.layers)),
        Part("coding", "host_bytes", CODE_BYTES * trial.sweeps * survey.quantized),
        Part("coding", "float32_flops", solved, sizes.busiest(size_of, rows_of)),
        Part("coding", "float32_flops", REPORTED * size),
    ]


def exchange(sizes: Sizes, trial: MethodTrial) -> list[Part]:
    """Processes wait for each other, then each sends its results to all."""
    run = sizes.run
    messages = trial.calls * sum(
        count * (run.ranks + min(run.ranks, max(weights_of(kind) // PIECE, 1)))
        for kind, count in sizes.layers.items()
    )
    return [
        Part("exchange", "link_bytes", network_bytes(sizes, trial)),
        Part("exchange", "link_messages", messages),
    ]


def network_bytes(sizes: Sizes, trial: MethodTrial) -> int | float:
    """Return the bytes that one process receives: sums over a ring, factors, results for rows."""
    others = (sizes.run.ranks - 1) / sizes.run.ranks
    ring = 2 * others * SUM_BYTES * sizes.summed()
    squares = sum(count * stage.columns**2 for stage, count in sizes.stages.items())
    sent = trial.sent * sizes.survey.quantized
    if sizes.survey.method.compensates:
        sent += TARGET_BYTES * sizes.drifted
    received = others * sent
    return ring + FACTOR_BYTES * squares + received if others else 0.0

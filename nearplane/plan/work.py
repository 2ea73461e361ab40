"""Predict the flops, bytes and matrices of each part of a run, and how processes divide them."""

from nearplane.codes.alphabet import PIECE
from nearplane.lattice.cross_target import RIDGES
from nearplane.model.compute_dtype import precise
from nearplane.model.output_head import vocabulary
from nearplane.plan.backward import BackwardSize
from nearplane.plan.part import FIRST, PLAIN, OffloadCost, Part
from nearplane.plan.run_size import RunSize
from nearplane.plan.sizes import Sizes, rows_of, size_of, weights_of
from nearplane.plan.survey import Survey
from nearplane.plan.throughput import MOVED, TRIANGLE_SHARE, MethodTrial, attended
from nearplane.walk.sensitivity import HESSIAN_TOKENS, POSITIONS, SEQUENCES
from nearplane.walk.sensitivity import LENGTH as PROBED_LENGTH

FORWARDS = 1.1  # passes of each token through all layers: one, and something for the trace
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
    copies = "copying to the device"
    parts = [
        Part("reading", "read_bytes", amount - ahead),
        Part("reading", "host_bytes", amount - ahead, name=copies),
    ]
    if offload.reads:
        parts += [
            Part("reading", "read_bytes", ahead, overlapped=True),
            Part("reading", "host_bytes", ahead, name=copies, overlapped=True),
        ]
    if offload.by_blocks:
        whole = sizes.survey.model_bytes * sizes.inside
        parts.append(Part("reading", "read_bytes", whole, FIRST))
    if offload.on_host:
        # there and back between two blocks, and back for every stage that starts anew
        times = 2 * sizes.blocks + offload.again * len(sizes.survey.stages)
        states = times * sizes.state_bytes, max(sizes.run.of_sequences())
        parts.append(Part("reading", "host_bytes", *states, "copying hidden states"))
    if offload.spilled:
        times = sizes.blocks + offload.again * len(sizes.survey.stages)
        amount = times * sizes.state_bytes
        states = amount, max(sizes.run.of_sequences()), "reading hidden states"
        parts.append(Part("reading", "read_bytes", *states))
    return parts


def writing(sizes: Sizes, offload: OffloadCost) -> list[Part]:
    """The first process writes the checkpoint and the folder of finished layers."""
    records = 2 * sizes.survey.record_bytes if offload.writes else 0
    amount = 2 * sizes.survey.stored_bytes - records
    parts = [Part("writing", "write_bytes", amount, FIRST)]
    if offload.writes:
        parts.append(Part("writing", "write_bytes", records, FIRST, overlapped=True))
    if offload.spilled:
        amount = sizes.blocks * sizes.state_bytes
        states = amount, max(sizes.run.of_sequences()), "writing hidden states"
        parts.append(Part("writing", "write_bytes", *states))
    return parts


def calibration(sizes: Sizes) -> list[Part]:
    """Return the forward passes of all streams: products, attention, and norms and activations."""
    survey, run = sizes.survey, sizes.run
    share = max(run.of_sequences())
    tokens = run.tokens * sizes.streams
    attention = attended(run.length, sizes.hidden) * sizes.blocks * tokens
    moved = MOVED * sizes.hidden * survey.compute.itemsize * sizes.blocks * tokens
    products = FORWARDS * 2 * survey.active * tokens + sizes.lent_flops()[0]
    passed = sizes.passed(FORWARDS * sizes.batches * sizes.streams, FORWARDS * tokens)
    return [
        Part("calibration", "forward_flops", products, share, "forward passes", passed),
        Part("calibration", "attention_flops", attention, share, "attention"),
        Part("calibration", "moved_bytes", moved, share, "norms, activations"),
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
        Part(
            "calibration again",
            part.rate,
            times * part.amount,
            part.share,
            f"{part.line} again",
            {rate: times * amount for rate, amount in part.beside.items()},
        )
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
    passed = sizes.passed(survey.units / 2, tokens / 2)
    drawn = "probing: drawn errors"
    return [
        Part("probing", products, tokens * survey.active + head, None, "probing: passes", passed),
        Part("probing", "attention_flops", attention, name="probing: passes"),
        Part("probing", "moved_bytes", moved, name="probing: passes"),
        Part("probing", "gram_flops", few * sizes.hessian_flops(), name="probing: Hessians"),
        Part("probing", "factor_flops", sizes.factors(), name="probing: Hessians"),
        Part("probing", "coded_weights", sizes.sampled(), name="probing: rate search"),
        Part("probing", "coded_matrices", DRAWN_MATRICES * len(survey.layers), name=drawn),
        Part("probing", "float32_flops", DRAWN * sizes.rows_by_squares(), name=drawn),
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
    starts = trial.launches
    sweep = {} if starts is None else sizes.started(starts.sweep)
    beside = {rate: trial.sweeps * amount for rate, amount in sweep.items()}
    checks = 2 * TRIANGLE_SHARE * checked
    return [
        Part("rounding", "solve_flops", trial.sweeps * size, share, "rounding sweeps", beside),
        Part("rounding", "float64_flops", checks, share, "certificates"),
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
    searches, products = "rate search, packing", "solves, energies"
    copied = CODE_BYTES * trial.sweeps * survey.quantized
    parts = [
        Part("coding", "coded_weights", of_rest * trial.rows_s, by_rows, searches),
        Part("coding", "coded_weights", of_rest * trial.threaded_s, by_pieces, searches),
        Part("coding", "coded_weights", of_rest * trial.each_s, name=searches),
        Part("coding", "coded_matrices", len(survey.layers), name="fitting tables"),
        Part("coding", "host_bytes", copied, name="copying integers to host"),
        Part("coding", "float32_flops", solved, sizes.busiest(size_of, rows_of), products),
        Part("coding", "float32_flops", REPORTED * size, name=products),
    ]
    if trial.launches is not None:
        moved = sizes.started(trial.launches.other)
        others = moved.pop("moved_bytes"), by_rows, "elementwise operators", moved
        parts.append(Part("coding", "moved_bytes", *others))
    return parts


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

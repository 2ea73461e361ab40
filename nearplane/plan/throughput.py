"""Measure how much work a process does in a second on this machine, by nearplane's functions."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import MISSING, dataclass, field, fields
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from nearplane import codes, lattice
from nearplane.lattice import nearest_plane, nearest_plane_among, rate_aware_plane
from nearplane.lattice.two_sided import RowBlock, moved_targets
from nearplane.methods import Method, certificate
from nearplane.methods.rate import histogram, histogram_on_device
from nearplane.plan.method_launches import MethodLaunches
from nearplane.plan.survey import Survey
from nearplane.plan.timers import Clock, PartsTimer, Timer
from nearplane.plan.trial_matrix import TrialMatrix, rows_of
from nearplane.rows import TILE
from nearplane.walk.hessian import HessianSum
from nearplane.walk.hidden_states import CPU

MEASURE_S = 0.15
SHORTEST_S = 1e-9  # a clock may not have moved
TOKENS = 1024
SMALLEST, LARGEST = 128, 1024  # columns that are measured on, however wide the model is
MOST_TWO_SIDED = 512  # columns of a trial whose many rows make up for each other
TRIALS = 3
SWEEPS = nearest_plane, nearest_plane_among, rate_aware_plane
ON_HOST = codes.fit, codes.price, codes.pack
COPIED = 1 << 22  # numbers in float32
MOVED = 40  # numbers that norms, activations and sums read or write, per token, block and channel
TRIANGLE_SHARE = 0.625  # of a full product that certificate.times_triangle computes


@dataclass(frozen=True)
class Throughput:
    """How much work one process does in a second.

    - `forward_flops`, `attention_flops`: of forward passes, in the type of products.
    - `moved_bytes`: read and written between products, by norms, activations and sums.
    - `gram_flops`: x xᵀ and x̂ xᵀ, summed in float32. `float32_flops`: other products.
    - `solve_flops`: nearest plane, rows · n² for a sweep. `float64_flops`: certificates.
    - `factor_flops`: a basis, n³ / 3.
    - `coded_weights`: weights in everything that the method does beside sweeps and certificates,
      such as searches and packing. `coded_matrices`: matrices in work that does not depend on
      their size, such as fitting code tables.
    - `read_bytes`, `write_bytes`: of the disk.
    - `link_bytes`: from a process to the next one; `link_messages`: of any size.
    - `host_bytes`: between the device and its host. `launches`: of kernels, one after the other.
    """

    forward_flops: float
    attention_flops: float
    moved_bytes: float
    gram_flops: float
    float32_flops: float
    solve_flops: float
    float64_flops: float
    factor_flops: float
    coded_weights: float
    coded_matrices: float
    read_bytes: float
    write_bytes: float
    link_bytes: float
    link_messages: float
    host_bytes: float = inf
    launches: float = inf


@dataclass(frozen=True)
class MethodTrial:
    """How a method spends its time on a few matrices.

    - `sweeps`, `checks`: how often all rows are rounded, and certified, on average.
    - `sweep_s`, `check_s`: seconds of both. Of all else: `rows_s` of work that processes can divide
      by rows, `pieces_s` by pieces of integers, `each_s` of work that they cannot divide.
    - `matrix_s`: seconds of one matrix that do not depend on its size; not in `each_s`.
    - `calls`: how often processes would wait for each other per matrix; `sent`: the bytes per
      weight that they would send each other.
    - `weights`: of all matrices; `size` is Σ rows · n².
    - `launches`: what it starts on an accelerator, if that was counted.
    - `threads`: how many times as fast work by pieces is on a host of several cores.
    """

    sweeps: float
    checks: float
    sweep_s: float
    check_s: float
    rows_s: float
    pieces_s: float
    each_s: float
    matrix_s: float
    calls: float
    sent: float
    weights: int
    size: int
    launches: MethodLaunches | None = None
    threads: float = 1.0

    @property
    def threaded_s(self) -> float:
        """Seconds of work by pieces, by all threads."""
        return self.pieces_s / self.threads

    @property
    def rest_s(self) -> float:
        return max(self.rows_s + self.threaded_s + self.each_s, SHORTEST_S)

    @property
    def seconds(self) -> float:
        return self.sweep_s + self.check_s + self.rest_s

    @property
    def solve_flops(self) -> float:
        """Infinite for a method that does not sweep."""
        return self.sweeps * self.size / max(self.sweep_s, SHORTEST_S) or inf

    @property
    def float64_flops(self) -> float:
        return self.checks * 2 * TRIANGLE_SHARE * self.size / max(self.check_s, SHORTEST_S) or inf

    @property
    def coded_weights(self) -> float:
        return self.weights / self.rest_s

    @property
    def one_core(self) -> float:
        """The same by one thread."""
        return self.weights / max(self.rows_s + self.pieces_s + self.each_s, SHORTEST_S)

    @property
    def coded_matrices(self) -> float:
        return 1 / max(self.matrix_s, SHORTEST_S)


def tried(
    method: Method, columns: int, device: torch.device = CPU, on_host: bool = False
) -> MethodTrial:
    """Return how `method` spends its time on a few matrices, rounded as a run rounds them.

    - `on_host`: of the time beside sweeps and certificates, count only that of fitting tables and
      of packing: the host's, where torch's operators run on an accelerator.
    """
    if method.weighs_outputs:
        columns = min(columns, MOST_TWO_SIDED)

    def least(seed: int, rows: int, columns: int) -> MethodTrial:
        """Return the faster of two trials: other programs can only add time."""
        matrix = TrialMatrix.of(method, seed, rows, columns, device)
        return min((once(matrix, on_host) for _ in range(2)), key=lambda trial: trial.seconds)

    small = least(0, TILE, SMALLEST)
    best = [least(seed, rows_of(method), columns) for seed in range(TRIALS)]
    measured = [field.name for field in fields(MethodTrial) if field.default is MISSING]
    sums: dict[str, Any] = {name: sum(getattr(each, name) for each in best) for name in measured}
    means = {name: sums[name] / TRIALS for name in ("sweeps", "checks", "calls", "sent")}
    each_s = max(sums["each_s"] - TRIALS * small.each_s, 0.0)
    return MethodTrial(**sums | means | {"each_s": each_s, "matrix_s": small.each_s})


def once(matrix: TrialMatrix, on_host: bool = False) -> MethodTrial:
    """Return how a method spends its time on one matrix; `matrix_s` is not known from one."""
    weight, device = matrix.weight, matrix.weight.device
    sweeps, check = Timer(SWEEPS, device), Timer([certificate.times_triangle], device)
    parts, host = PartsTimer([sweeps, check], device), Timer(ON_HOST)
    with ExitStack() as stack:
        for timer in (sweeps, check, parts, host):
            stack.enter_context(timer.running())
        if on_host:
            stack.enter_context(histogram.within(histogram_on_device))
        started = Clock.started(device)
        matrix.quantize()
        seconds = host.seconds if on_host else started.seconds - parts.left_out - parts.rows_s
    rows, columns = weight.shape
    swept = sweeps.rows / rows
    each_s = seconds - parts.pieces_s
    extra = matrix.method.target_certificates if matrix.output_hessian else 0
    checks = check.rows / rows
    if matrix.output_hessian and not on_host:
        each_s -= between_rows_s(matrix, swept)
    return MethodTrial(
        sweeps=swept,
        checks=checks - extra,
        sweep_s=sweeps.seconds,
        check_s=check.seconds * (checks - extra) / max(checks, 1),
        rows_s=0.0 if on_host else max(parts.rows_s, 0.0),
        pieces_s=parts.pieces_s,
        each_s=max(each_s, 0.0),
        matrix_s=0.0,
        calls=float(parts.calls),
        sent=parts.sent / weight.numel(),
        weights=rows * columns,
        size=rows * columns**2,
    )


def between_rows_s(matrix: TrialMatrix, sweeps: float) -> float:
    """Return the seconds that output Hessians take, which are counted as parts of their own.

    These are their factors, and the products by which errors of rows move the rows before them, in
    every sweep and for the certificate.
    """
    started, first = Clock.started(matrix.weight.device), 0
    blocks = []
    for hessian in matrix.output_hessian:
        basis = lattice.basis(hessian, "activation", 1.0)
        blocks.append(RowBlock(first + basis.columns, basis.factor, matrix.weight.dtype))
        first += len(basis.columns)
    found, started = started.seconds, Clock.started(matrix.weight.device)
    moved_targets(matrix.weight, blocks, matrix.weight)
    return found + (sweeps + 1) * started.seconds


@dataclass(frozen=True)
class MachineBenchmark:
    """Short measurements at a model's width, type and length of sequences."""

    dtype: torch.dtype
    columns: int
    length: int
    head: int = 64
    device: torch.device = CPU
    draws: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @classmethod
    def of(cls, survey: Survey, length: int, device: torch.device = CPU) -> "MachineBenchmark":
        hidden = survey.number("hidden_size", LARGEST)
        columns = min(max(hidden, SMALLEST), LARGEST)
        return cls(survey.compute, columns, min(length, TOKENS), device=device)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.draws).to(self.device)

    def seconds_of(self, work: Callable[[], Any]) -> float:
        return seconds_of(work, self.device)

    def forward_flops(self) -> float:
        x, weight = self.random(TOKENS, self.columns), self.random(2 * self.columns, self.columns)
        x, weight = x.to(self.dtype), weight.to(self.dtype)
        return (
            2 * TOKENS * weight.numel() / self.seconds_of(lambda: nn.functional.linear(x, weight))
        )

    def attention_flops(self) -> float:
        heads = max(self.columns // self.head, 1)
        q = self.random(1, heads, self.length, self.head).to(self.dtype)
        attend = nn.functional.scaled_dot_product_attention
        flops = attended(self.length, heads * self.head) * self.length
        return flops / self.seconds_of(lambda: attend(q, q, q, is_causal=True))

    def moved_bytes(self) -> float:
        """Time an RMS norm as models write it, a gate and a sum: operations between products."""
        x = self.random(TOKENS, self.columns).to(self.dtype)

        def around() -> Tensor:
            wide = x.float()
            normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
            return x + nn.functional.silu(normed) * x

        # a quarter of those of a block: two norms, rotations, a wider gate, two sums
        return MOVED / 4 * x.nbytes / self.seconds_of(around)

    def gram_flops(self) -> float:
        x = self.random(TOKENS, self.columns).to(self.dtype)
        total = HessianSum(self.columns, self.device)
        return 2 * TOKENS * self.columns**2 / self.seconds_of(lambda: total.add(x))

    def float32_flops(self) -> float:
        square = self.random(self.columns, self.columns)
        return 2 * self.columns**3 / self.seconds_of(lambda: square @ square)

    def factor_flops(self, method: Method) -> float:
        x = self.random(2 * self.columns, self.columns)
        hessian = x.T @ x / len(x)
        return self.columns**3 / 3 / self.seconds_of(lambda: method.basis(hessian))

    def host_bytes(self) -> float:
        """Time a copy from the host."""
        numbers = torch.zeros(COPIED)
        return numbers.nbytes / self.seconds_of(lambda: numbers.to(self.device))


def attended(length: int, width: int) -> float:
    """Return the flops of a token's attention to those before it, half of `length` on average."""
    return 4 * length / 2 * width


def seconds_of(work: Callable[[], Any], device: torch.device = CPU) -> float:
    """Return the shortest time that `work` takes, of those that fit in MEASURE_S."""
    work()
    best, began = inf, time.perf_counter()
    while time.perf_counter() - began < MEASURE_S:
        start = Clock.started(device)
        work()
        best = min(best, start.seconds)
    return max(best, SHORTEST_S)

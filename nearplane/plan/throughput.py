"""Measure how much work a process does in a second on this machine, by nearplane's functions."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from nearplane.lattice import nearest_plane, nearest_plane_among, rate_aware_plane
from nearplane.methods import Method, certificate
from nearplane.op import Op
from nearplane.plan.survey import Survey
from nearplane.rows import TILE, Work, in_parts
from nearplane.walk.hessian import HessianSum
from nearplane.walk.hidden_states import CPU
from nearplane.walk.messages import narrowest

MEASURE_S = 0.15
SHORTEST_S = 1e-9  # a clock may not have moved
TOKENS = 1024
SMALLEST, LARGEST = 128, 1024  # columns that are measured on, however wide the model is
TRIALS = 3
COPIED = 1 << 22  # numbers in float32
RANK = 16  # columns for every common factor of the inputs
COLUMN_SPREAD, ROW_SPREAD = 0.5, 0.3  # of logarithms
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
    - `host_bytes`: between the device and its host.
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

    @property
    def rest_s(self) -> float:
        return max(self.rows_s + self.pieces_s + self.each_s, SHORTEST_S)

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
    def coded_matrices(self) -> float:
        return 1 / max(self.matrix_s, SHORTEST_S)


@dataclass(frozen=True)
class Clock:
    """Seconds since it was made, of wall time or of this process's CPU time, whichever is less.

    For work on one thread, the time that other programs take does not count.

    - `device`: whose work is waited for; of another one than the CPU, wall time counts.
    """

    device: torch.device = CPU
    wall: float = 0.0
    own: float = 0.0

    @classmethod
    def started(cls, device: torch.device = CPU) -> "Clock":
        wait_for(device)
        return cls(device, time.perf_counter(), time.process_time())

    @property
    def seconds(self) -> float:
        wait_for(self.device)
        wall, own = time.perf_counter() - self.wall, time.process_time() - self.own
        return min(wall, own) if self.device == CPU else wall


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device != CPU:
        torch.accelerator.synchronize(device)


@dataclass
class Timer:
    """How long calls of a function took, and how many rows they were on.

    - `op`: the function, whose first argument is a matrix.
    """

    op: Op
    seconds: float = 0.0
    rows: int = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time all calls that are made inside a `with` block."""
        with self.op.within(self.timed):
            yield

    def timed(self, rows: Tensor, *others: Any, **named: Any) -> Tensor:
        """Call the function, add its time and rows, return its result."""
        started = Clock.started(rows.device)
        result = self.op(rows, *others, **named)
        self.seconds += started.seconds
        self.rows += len(rows)
        return result


@dataclass
class PartsTimer:
    """How long the work took that processes can share, by rows or by pieces of integers.

    - `calls`: how often there was such work. `sent`: bytes of its results, sent to all processes.
    """

    device: torch.device = CPU
    rows_s: float = 0.0
    pieces_s: float = 0.0
    calls: int = 0
    sent: int = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time all calls of `rows.in_parts` inside a `with` block, but for those inside others."""
        with in_parts.within(self.timed):
            yield

    def timed(self, work: Work, count: int, grain: int = TILE) -> list[tuple[Tensor, ...]]:
        """Call `in_parts`, add its time and the bytes of its results, return these."""
        started = Clock.started(self.device)
        results = in_parts(work, count, grain)
        seconds = started.seconds
        self.rows_s += seconds if grain == TILE else 0.0
        self.pieces_s += seconds if grain != TILE else 0.0
        self.calls += 1
        self.sent += sum(bytes_of(each) for part in results for each in part)
        return results


def bytes_of(result: Tensor) -> int:
    """Return about the bytes of a tensor in a message, from the range of 1000 of its numbers."""
    some = result.reshape(-1)[:: max(1, result.numel() // 1000)]
    return result.numel() * narrowest(some).dtype.itemsize


def tried(method: Method, columns: int, device: torch.device = CPU) -> MethodTrial:
    """Return how `method` spends its time on a few tiles of rows."""
    small = least_of_two(method, 0, SMALLEST, device)
    best = [least_of_two(method, seed, columns, device) for seed in range(TRIALS)]
    sums: dict[str, Any] = {
        field.name: sum(getattr(each, field.name) for each in best) for field in fields(MethodTrial)
    }
    means = {name: sums[name] / TRIALS for name in ("sweeps", "checks", "calls", "sent")}
    each_s = max(sums["each_s"] - TRIALS * small.each_s, 0.0)
    return MethodTrial(**sums | means | {"each_s": each_s, "matrix_s": small.each_s})


def least_of_two(method: Method, seed: int, columns: int, device: torch.device) -> MethodTrial:
    """Return the faster of two trials: other programs can only add time."""
    weight_and_hessian = [part.to(device) for part in problem(seed, columns)]
    return min(
        (once(method, *weight_and_hessian) for _ in range(2)), key=lambda trial: trial.seconds
    )


def once(method: Method, weight: Tensor, hessian: Tensor) -> MethodTrial:
    """Return how `method` spends its time on one matrix; `matrix_s` is not known from one."""
    basis = method.basis(hessian)
    sweeps = [Timer(each) for each in (nearest_plane, nearest_plane_among, rate_aware_plane)]
    check, parts = Timer(certificate.times_triangle), PartsTimer(weight.device)
    with ExitStack() as stack:
        for timer in (*sweeps, check, parts):
            stack.enter_context(timer.running())
        started = Clock.started(weight.device)
        method(weight, basis)
        seconds = started.seconds
    swept_s = sum(timer.seconds for timer in sweeps)
    rows, columns = weight.shape
    return MethodTrial(
        sweeps=sum(timer.rows for timer in sweeps) / rows,
        checks=check.rows / rows,
        sweep_s=swept_s,
        check_s=check.seconds,
        rows_s=max(parts.rows_s - swept_s - check.seconds, 0.0),
        pieces_s=parts.pieces_s,
        each_s=max(seconds - parts.rows_s - parts.pieces_s, 0.0),
        matrix_s=0.0,
        calls=float(parts.calls),
        sent=parts.sent / weight.numel(),
        weights=rows * columns,
        size=rows * columns**2,
    )


def problem(seed: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return a random weight and Hessian on which searches take about as long as on a layer's.

    Inputs are correlated; columns and rows are of unequal size.
    """
    draws = torch.Generator().manual_seed(seed)
    common = torch.randn(2 * columns, columns // RANK, generator=draws)
    mixed = (
        common @ torch.randn(columns // RANK, columns, generator=draws) / (columns // RANK) ** 0.5
    )
    x = mixed + torch.randn(2 * columns, columns, generator=draws)
    x *= torch.exp(COLUMN_SPREAD * torch.randn(columns, generator=draws))
    weight = torch.randn(TILE, columns, generator=draws)
    weight *= 0.02 * torch.exp(ROW_SPREAD * torch.randn(TILE, 1, generator=draws))
    return weight, x.T @ x / len(x)


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

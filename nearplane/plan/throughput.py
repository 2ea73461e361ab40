"""What one process does in a second, measured on this machine through nearplane's own functions."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from nearplane.lattice import nearest_plane, rate_aware_plane
from nearplane.methods import Method, certificate
from nearplane.op import Op
from nearplane.plan.survey import Survey
from nearplane.rows import TILE, Work, in_parts
from nearplane.walk.hessian import HessianSum
from nearplane.walk.messages import narrowest

MEASURE_S = 0.15
TOKENS = 1024
SMALLEST, LARGEST = 128, 1024  # columns that are measured on, however wide the model is
TRIALS = 3
RANK = 16  # columns a common input
COLUMN_SPREAD, ROW_SPREAD = 0.5, 0.3  # of logarithms
MOVED = 40  # numbers read or written by what is no product, a token and block, per hidden number
BLOCK_PASSES = 0.625  # of a full product: what times_triangle does, its zeros mostly left out


@dataclass(frozen=True)
class Throughput:
    """What one process does in a second.

    - `forward_flops`, `attention_flops`: of forward passes, in the type that is computed in.
    - `moved_bytes`: read and written between products, by norms, activations and sums.
    - `gram_flops`: x xᵀ and x̂ xᵀ, summed in float32. `float32_flops`: other products.
    - `solve_flops`: nearest plane, rows · n² for a sweep. `float64_flops`: certificates.
    - `factor_flops`: a basis, n³ / 3.
    - `coded_weights`: all that the method does beside sweeps and certificates, weights.
      `coded_matrices`: what it does so often for every matrix, however small, such as tables.
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
    """A method tried on a few matrices.

    - `sweeps`, `checks`: how often it went over all rows, rounding and certifying, on average.
    - the seconds of both, for all matrices, and of all else: `rows_s` of what can be cut between
      tiles of rows, `pieces_s` between pieces of integers, `each_s` of what cannot be shared.
    - `matrix_s`: seconds of a matrix that cannot be shared, however small it is; not in `each_s`.
    - `calls`: how often processes would wait for each other at a matrix, and `sent` the bytes a
      weight that they would send each other then.
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
        return max(self.rows_s + self.pieces_s + self.each_s, 1e-9)

    @property
    def seconds(self) -> float:
        return self.sweep_s + self.check_s + self.rest_s

    @property
    def solve_flops(self) -> float:
        """Infinite for a method that does not sweep."""
        return self.sweeps * self.size / max(self.sweep_s, 1e-9) or inf

    @property
    def float64_flops(self) -> float:
        return self.checks * 2 * BLOCK_PASSES * self.size / max(self.check_s, 1e-9) or inf

    @property
    def coded_weights(self) -> float:
        return self.weights / self.rest_s

    @property
    def coded_matrices(self) -> float:
        return 1 / max(self.matrix_s, 1e-9)


@dataclass(frozen=True)
class Clock:
    """Seconds since it was made, on the wall, or of this process where those are fewer.

    Where work has one thread, what other programs take does not count.
    """

    wall: float = field(default_factory=time.perf_counter)
    own: float = field(default_factory=time.process_time)

    @property
    def seconds(self) -> float:
        return min(time.perf_counter() - self.wall, time.process_time() - self.own)


@dataclass
class Timed:
    """How long a function was at work, and on how many rows."""

    seconds: float = 0.0
    rows: int = 0

    def noted(self, work: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return `work` that has its calls noted."""

        def noted(rows: Tensor, *others: Any, **named: Any) -> Tensor:
            started = Clock()
            made = work(rows, *others, **named)
            self.seconds += started.seconds
            self.rows += len(rows)
            return made

        return noted


@dataclass
class Shared:
    """What is done in parts, which processes share: by rows, or by pieces of integers.

    - `sent`: bytes of the results, which all processes are sent.
    """

    rows_s: float = 0.0
    pieces_s: float = 0.0
    calls: int = 0
    sent: int = 0
    working: bool = False

    def noted(self, parts: Callable[..., Any]) -> Callable[..., Any]:
        """Return `in_parts` that has its calls noted, but for those in a part's work."""

        def noted(work: Work, count: int, grain: int = TILE) -> list[tuple[Tensor, ...]]:
            if self.working:
                return parts(work, count, grain)
            self.working, started = True, Clock()
            try:
                made = parts(work, count, grain)
            finally:
                self.working = False
            seconds = started.seconds
            self.rows_s += seconds if grain == TILE else 0.0
            self.pieces_s += seconds if grain != TILE else 0.0
            self.calls += 1
            self.sent += sum(bytes_of(each) for part in made for each in part)
            return made

        return noted


def bytes_of(result: Tensor) -> int:
    """Return about the bytes of a message; of many integers, a thousand are looked at."""
    some = result.reshape(-1)[:: max(1, result.numel() // 1000)]
    return result.numel() * narrowest(some).dtype.itemsize


@contextmanager
def watched(op: Op, noted: Callable[[Callable], Callable]) -> Iterator[None]:
    """Have every call of an op noted for a while."""
    before = op.versions
    own = Op(op.reference)
    own.versions = before
    op.versions = {"timed": (lambda *_, **__: True, noted(own))}
    try:
        yield
    finally:
        op.versions = before


@contextmanager
def watched_checks(noted: Callable[[Callable], Callable]) -> Iterator[None]:
    """Have every product of a certificate noted for a while."""
    before = certificate.times_triangle
    certificate.times_triangle = noted(before)
    try:
        yield
    finally:
        certificate.times_triangle = before


def tried(method: Method, columns: int) -> MethodTrial:
    """Return how `method` spends its time on a few tiles of rows."""
    small = least_of_two(method, 0, SMALLEST)
    best = [least_of_two(method, seed, columns) for seed in range(TRIALS)]
    sums: dict[str, Any] = {
        field.name: sum(getattr(each, field.name) for each in best) for field in fields(MethodTrial)
    }
    means = {name: sums[name] / TRIALS for name in ("sweeps", "checks", "calls", "sent")}
    each_s = max(sums["each_s"] - TRIALS * small.each_s, 0.0)
    return MethodTrial(**sums | means | {"each_s": each_s, "matrix_s": small.each_s})


def least_of_two(method: Method, seed: int, columns: int) -> MethodTrial:
    """Return the faster of two trials: other programs take time, and nothing gives it."""
    found = problem(seed, columns)
    return min((once(method, *found) for _ in range(2)), key=lambda trial: trial.seconds)


def once(method: Method, weight: Tensor, hessian: Tensor) -> MethodTrial:
    """Return how `method` spends its time on one matrix; `matrix_s` is not known from one."""
    basis = method.basis(hessian)
    sweep, check, shared = Timed(), Timed(), Shared()
    with (
        watched(nearest_plane, sweep.noted),
        watched(rate_aware_plane, sweep.noted),
        watched(in_parts, shared.noted),
        watched_checks(check.noted),
    ):
        started = Clock()
        method(weight, basis)
        seconds = started.seconds
    rows, columns = weight.shape
    return MethodTrial(
        sweeps=sweep.rows / rows,
        checks=check.rows / rows,
        sweep_s=sweep.seconds,
        check_s=check.seconds,
        rows_s=max(shared.rows_s - sweep.seconds - check.seconds, 0.0),
        pieces_s=shared.pieces_s,
        each_s=max(seconds - shared.rows_s - shared.pieces_s, 0.0),
        matrix_s=0.0,
        calls=float(shared.calls),
        sent=shared.sent / weight.numel(),
        weights=rows * columns,
        size=rows * columns**2,
    )


def problem(seed: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return a weight and a Hessian about as unequal as a layer's, so that searches are as long.

    Inputs that hang together, columns and rows of unequal size.
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
    draws: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @classmethod
    def of(cls, found: Survey, length: int) -> "MachineBenchmark":
        hidden = getattr(found.config, "hidden_size", LARGEST)
        return cls(found.compute, min(max(hidden, SMALLEST), LARGEST), min(length, TOKENS))

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.draws)

    def forward_flops(self) -> float:
        x, weight = self.random(TOKENS, self.columns), self.random(2 * self.columns, self.columns)
        x, weight = x.to(self.dtype), weight.to(self.dtype)
        return 2 * TOKENS * weight.numel() / seconds_of(lambda: nn.functional.linear(x, weight))

    def attention_flops(self) -> float:
        heads = max(self.columns // self.head, 1)
        q = self.random(1, heads, self.length, self.head).to(self.dtype)
        attend = nn.functional.scaled_dot_product_attention
        flops = attended(self.length, heads * self.head) * self.length
        return flops / seconds_of(lambda: attend(q, q, q, is_causal=True))

    def moved_bytes(self) -> float:
        """Of an RMS norm as models write it, a gate and a sum: what lies around the products."""
        x = self.random(TOKENS, self.columns).to(self.dtype)

        def around() -> Tensor:
            wide = x.float()
            normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
            return x + nn.functional.silu(normed) * x

        # a quarter of what a block does: two norms, rotations, a wider gate, two sums
        return MOVED / 4 * x.nbytes / seconds_of(around)

    def gram_flops(self) -> float:
        x, total = self.random(TOKENS, self.columns).to(self.dtype), HessianSum(self.columns)
        return 2 * TOKENS * self.columns**2 / seconds_of(lambda: total.add(x))

    def float32_flops(self) -> float:
        square = self.random(self.columns, self.columns)
        return 2 * self.columns**3 / seconds_of(lambda: square @ square)

    def factor_flops(self, method: Method) -> float:
        x = self.random(2 * self.columns, self.columns)
        hessian = x.T @ x / len(x)
        return self.columns**3 / 3 / seconds_of(lambda: method.basis(hessian))


def attended(length: int, width: int) -> float:
    """Return the flops of a token's attention to those before it, half of `length` on average."""
    return 4 * length / 2 * width


def seconds_of(work: Callable[[], Any]) -> float:
    """Return the shortest time that `work` takes, of those that fit in MEASURE_S."""
    work()
    best, began = inf, time.perf_counter()
    while time.perf_counter() - began < MEASURE_S:
        start = Clock()
        work()
        best = min(best, start.seconds)
    return best

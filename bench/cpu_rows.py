"""What bench/cpu.py times: layers of two Llamas in every form, and the check before it times them.

A pass goes once through copies of a model's block, more than twice the last-level cache, so that
all that it reads comes from memory. It is timed after one that is not, since the pass before it in
a round is another row's.
"""

import ctypes
import functools
import itertools
import math
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from records import Kind, Model, Shape, labelled, record_of
from torch import Tensor

from nearplane.codes import resident
from nearplane.kernels import cpu

# Gweights/s of every shape, and under None of the whole pass
Throughput = dict[Shape | None, float]

# of the relative error: by layout, and by the type of activations
LIMITS = {
    "compact": {torch.float32: 2e-6, torch.bfloat16: 4e-3},
    "fast": {torch.float32: 4e-4, torch.bfloat16: 4e-3},
    "int8": {torch.float32: 2e-2, torch.bfloat16: 2e-2},
}
CHECK_ROWS = 1024  # of a weight at a time, in float64


@dataclass(frozen=True)
class Row:
    """One row of the table.

    - `run`: one pass at a number of threads, after another one that is not timed.
    - `bits`: nominal; `resident_bits`: of what is read, for a weight; `shape_bits`: where the
      shapes of layers differ in that.
    - `isa`: of a nearplane kernel; `batch` is None for what multiplies nothing.
    """

    kernel: str
    run: Callable[[int], Throughput]
    bits: float | None = None
    outliers: float | None = None
    resident_bits: float | None = None
    model: Model | None = None
    batch: int | None = None
    isa: str | None = None
    shape_bits: dict[Shape, float] = field(default_factory=dict, compare=False)

    @property
    def label(self) -> str:
        """The kernel, with its bits and outliers where it has several."""
        return labelled(self.kernel, self.bits, self.outliers)


def copies(model: Model, bits: float) -> int:
    """Return how many blocks of `bits` a weight fill the last-level cache twice."""
    return math.floor(2 * cache_bytes() / (model.weights * bits / 8)) + 1


@functools.cache
def cache_bytes() -> int:
    """Return the size of the last-level cache; 32 MiB where the system does not tell it."""
    sizes = [0]
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        text = (folder / "size").read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20}[text[-1]])
    return max(sizes) or 32 * 2**20


@dataclass(frozen=True)
class Laid:
    """A record and what it is laid out as."""

    record: Tensor
    form: str
    bytes: Tensor


def laid_out(kind: Kind, shapes: set[Shape], layout: str) -> dict[Shape, Laid]:
    """Return one random matrix of every shape; ValueError if no kernel serves one."""
    found = {}
    torch.manual_seed(0)
    for shape in sorted(shapes):
        record = record_of(kind, *shape)
        with resident.wanting(*(("fast", "int8") if layout == "int8" else (layout,))):
            found[shape] = Laid(record, *resident.lay_out(record, *shape))
        if found[shape].form == resident.RECORD:
            raise ValueError(f"no kernel serves {kind.name} {kind.bits} of {shape}")
    return found


def check(
    matrices: dict[Shape, Laid], isas: list[str], batches: list[int], layout: str
) -> dict[str, str]:
    """Return what differs from the float64 product of the decoded records by too much.

    The worst case of every instruction set that is wrong anywhere.
    """
    worst: dict[str, tuple[float, str]] = {}
    for (rows, columns), laid in matrices.items():
        weight = resident.value(laid.record, resident.RECORD, rows, columns)
        for dtype, limit in LIMITS[layout].items():
            x = torch.randn(max(batches), columns).to(dtype)
            parts = [x.double() @ part.double().T for part in weight.split(CHECK_ROWS)]
            expected = torch.cat(parts, 1)
            for isa, batch in itertools.product(isas, batches):
                cpu.choose(isa)
                got = resident.product(x[:batch], laid.bytes, laid.form, rows).double()
                error = float((got - expected[:batch]).norm() / expected[:batch].norm())
                if not error / limit <= max(1, worst.get(isa, (0, ""))[0]):
                    case = f"{rows} x {columns}, batch {batch}, {dtype}"
                    worst[isa] = error / limit, f"{case}: {error:.1e} is over {limit:.0e}"
    return {isa: case for isa, (_, case) in worst.items()}


def ours(
    kind: Kind, model: Model, isas: dict[int, list[str]], dtype: torch.dtype, layout: str
) -> tuple[list[Row], dict[str, str]]:
    """Return the rows of a kernel for the batches and instruction sets, and which sets are red.

    - `layout`: "compact", "fast", or "int8": fast, with activations as integers of 8 bits.
    """
    matrices = laid_out(kind, set(model.layers), layout)
    sets = sorted({isa for some in isas.values() for isa in some})
    red = check(matrices, sets, list(isas), layout)
    name = kind.name if layout == "compact" else f"{kind.name}-{layout}"
    stored = 8 * sum(len(matrices[shape].bytes) for shape in model.layers) / model.weights
    by_shape = {shape: 8 * len(laid.bytes) / math.prod(shape) for shape, laid in matrices.items()}
    many = range(copies(model, stored))
    layers = [(shape, matrices[shape].bytes.clone()) for _ in many for shape in model.layers]

    def row(batch: int, isa: str) -> Row:
        x = activations(model, batch, dtype)
        calls = [
            (shape, functools.partial(resident.product, x[shape[1]], laid, "cpu", shape[0]))
            for shape, laid in layers
        ]

        def run(threads: int) -> Throughput:
            cpu.choose(isa)
            return timed(calls, threads)

        return Row(name, run, kind.bits, kind.outliers, stored, model, batch, isa, by_shape)

    found = [row(batch, isa) for batch, some in isas.items() for isa in some if isa not in red]
    return found, red


def dense(name: str, model: Model, batches: list[int], dtype: torch.dtype) -> list[Row]:
    """Return the rows of torch's own product."""
    bits = 8.0 * dtype.itemsize
    many = range(copies(model, bits))
    layers = [(shape, torch.randn(shape).to(dtype)) for _ in many for shape in model.layers]

    def row(batch: int) -> Row:
        x = activations(model, batch, dtype)
        calls = [(shape, functools.partial(F.linear, x[shape[1]], w)) for shape, w in layers]
        run = functools.partial(timed, calls)
        return Row(name, run, bits, None, bits, model, batch)

    return [row(batch) for batch in batches]


def activations(model: Model, batch: int, dtype: torch.dtype) -> dict[int, Tensor]:
    return {n: torch.randn(batch, n).to(dtype) for n in (model.hidden, model.feed_forward)}


def timed(calls: list[tuple[Shape, Callable[[], object]]], threads: int) -> Throughput:
    """Return the rates of one pass through the calls."""
    torch.set_num_threads(threads)
    for _, call in calls:
        call()
    seconds: dict[Shape, float] = defaultdict(float)
    weights: dict[Shape, int] = defaultdict(int)
    for shape, call in calls:
        started = time.perf_counter()
        call()
        seconds[shape] += time.perf_counter() - started
        weights[shape] += shape[0] * shape[1]
    whole = sum(weights.values()) / sum(seconds.values()) / 1e9
    return {None: whole} | {shape: weights[shape] / seconds[shape] / 1e9 for shape in seconds}


def bandwidth() -> Row:
    """Return the row that reads memory and does no more; its rate is in GB/s."""
    source = Path(__file__).with_name("read_bandwidth.cpp")
    with tempfile.TemporaryDirectory() as folder:
        built = str(Path(folder) / "read_bandwidth.so")
        command = ["g++", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
        subprocess.run([*command, str(source), "-o", built], check=True, capture_output=True)
        read_all = ctypes.CDLL(built).read_all
    read_all.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint]
    read_all.restype = ctypes.c_uint64
    memory = torch.ones(8 * cache_bytes(), dtype=torch.uint8)

    def run(threads: int) -> Throughput:
        read_all(memory.data_ptr(), len(memory), threads)
        started = time.perf_counter()
        read_all(memory.data_ptr(), len(memory), threads)
        return {None: len(memory) / (time.perf_counter() - started) / 1e9}

    return Row("read-bandwidth", run)

"""What bench/gpu.py times: layers of a model in every form, and the check before it times them."""

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from records import Kind, Model, Shape, record_of
from torch import Tensor

from nearplane.codes import resident
from nearplane.kernels.gpu.cuda import layout as cuda_layout
from nearplane.kernels.gpu.cuda import linear as cuda_linear
from nearplane.kernels.gpu.portable import layout as triton_layout
from nearplane.kernels.gpu.portable import linear as triton_linear

CACHE_BYTES = 2**27  # more than the last-level cache of any GPU here
LIMIT = 4e-3  # of a product in bf16, relative: its own rounding is 1.7e-3 in the mean
Product = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Kernel:
    """How a layer is held and multiplied.

    - `pack`: (shape, device) -> what is held, or None if this kernel has no such layer.
    - `product`: (x, what is held, rows) -> x · weightᵀ.
    """

    name: str
    pack: Callable[[Shape, torch.device], Tensor | None]
    product: Product
    kind: Kind | None = None


@functools.cache
def _record(kind: Kind, shape: Shape) -> Tensor:
    torch.manual_seed(0)
    return record_of(kind, *shape)


def cuda(kind: Kind) -> Kernel:
    def pack(shape: Shape, device: torch.device) -> Tensor | None:
        return cuda_layout.pack(_record(kind, shape), device)

    return Kernel(f"{kind.label}, CUDA", pack, cuda_linear.linear, kind)


def triton(kind: Kind) -> Kernel:
    def pack(shape: Shape, device: torch.device) -> Tensor | None:
        return triton_layout.pack(_record(kind, shape), device)

    return Kernel(f"{kind.label}, Triton", pack, triton_linear.linear, kind)


def bf16() -> Kernel:
    def pack(shape: Shape, device: torch.device) -> Tensor:
        return torch.randn(shape, device=device).to(torch.bfloat16)

    return Kernel("torch bf16", pack, lambda x, held, rows: F.linear(x, held))


def torchao() -> list[Kernel]:
    """Return torchao's int4 weights, if it is installed."""
    if importlib.util.find_spec("torchao") is None:
        return []
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    def pack(shape: Shape, device: torch.device) -> Tensor:
        layer = torch.nn.Linear(shape[1], shape[0], bias=False, device=device, dtype=torch.bfloat16)
        quantize_(layer, Int4WeightOnlyConfig(group_size=128))
        return layer.weight

    return [Kernel("torchao int4", pack, lambda x, held, rows: F.linear(x, held))]


def wrong(kernel: Kernel, shape: Shape, batch: int, device: torch.device) -> str:
    """Return how a product differs from the decoded weight's in float64; "" if it does not."""
    held = kernel.pack(shape, device)
    if held is None or kernel.kind is None:
        return ""
    rows, columns = shape
    weight = resident.value(_record(kernel.kind, shape), resident.RECORD, rows, columns)
    x = torch.randn(batch, columns, device=device).to(torch.bfloat16)
    expected = x.cpu().double() @ weight.double().T
    got = kernel.product(x, held, rows).cpu().double()
    error = float((got - expected).norm() / expected.norm())
    if error <= LIMIT:
        return ""
    return f"{kernel.name}, {rows} x {columns}, batch {batch}: error {error:.1e} over {LIMIT:.0e}"


class Timed:
    """A kernel on all layers of one block, in copies that no cache holds.

    On a GPU its calls are captured in a CUDA graph: the time of a pass is the GPU's alone.
    """

    def __init__(self, kernel: Kernel, model: Model, batch: int, device: torch.device):
        self.kernel, self.device = kernel, device
        held = {shape: kernel.pack(shape, device) for shape in set(model.layers)}
        missing = [shape for shape, found in held.items() if found is None]
        if missing:
            raise ValueError(f"{kernel.name} has no layers of {missing[0]}")
        block = sum(_bytes(held[shape]) for shape in model.layers)
        copies = 1 if device.type == "cpu" else 2 * CACHE_BYTES // block + 1
        self.bits = 8 * block / model.weights
        self.weights = copies * model.weights
        widths = {columns for _, columns in model.layers}
        self.x = {n: torch.randn(batch, n, device=device).to(torch.bfloat16) for n in widths}
        self.layers = [
            (shape, held[shape].clone()) for _ in range(copies) for shape in model.layers
        ]
        self.run()
        self.graph = self._captured() if device.type == "cuda" else None

    def run(self) -> None:
        for (rows, columns), held in self.layers:
            self.kernel.product(self.x[columns], held, rows)

    def _captured(self) -> torch.cuda.CUDAGraph:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.run()
        return graph

    def seconds(self) -> float:
        """Return how long one pass takes."""
        if self.graph is None:
            started = time.perf_counter()
            self.run()
            return time.perf_counter() - started
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.graph.replay()
        first.record()
        self.graph.replay()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3


def rounds(timed: list[Timed], count: int) -> list[list[float]]:
    """Return the seconds of each, taken in turns."""
    found: list[list[float]] = [[] for _ in timed]
    for _ in range(count):
        for one, seconds in zip(timed, found, strict=True):
            seconds.append(one.seconds())
    return found


def ratios(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Return theirs / ours within rounds: the median, the least and the largest."""
    each = [b / a for a, b in zip(ours, theirs, strict=True)]
    return statistics.median(each), min(each), max(each)


def _bytes(held: Tensor) -> int:
    return held.numel() * held.element_size()

"""Random layers of well-known models, stored as the methods would store them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nearplane import codes, types

Shape = tuple[int, int]

GROUP = 128
# standard deviations of the integers that these bits store
SIGMAS = {
    ("hptq", 2.1): 0.917,
    ("hptq", 3.1): 1.963,
    ("hptq", 4.1): 4.0,
    ("eclq", 2.1): 0.98,
    ("eclq", 3.1): 2.03,
}
SPREAD = 0.3  # of ECLQ's rows, columns and steps, lognormal


@dataclass(frozen=True)
class Model:
    """The shape of a Llama."""

    name: str
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int

    @property
    def layers(self) -> list[Shape]:
        """(rows, columns) of q, k, v, o, gate, up and down."""
        hidden, ff, kv = self.hidden, self.feed_forward, self.hidden * self.kv_heads // self.heads
        attention = [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden)]
        return [*attention, (ff, hidden), (ff, hidden), (hidden, ff)]

    @property
    def weights(self) -> int:
        return sum(rows * columns for rows, columns in self.layers)


MODELS = {
    "1b": Model("1b", hidden=2048, feed_forward=8192, heads=32, kv_heads=8),
    "8b": Model("8b", hidden=4096, feed_forward=14336, heads=32, kv_heads=8),
    "qwen3-8b": Model("qwen3-8b", hidden=4096, feed_forward=12288, heads=32, kv_heads=8),
}


def labelled(kernel: str, bits: float | None, outliers: float | None) -> str:
    share = f" +{100 * outliers:g}%" if outliers else ""
    return kernel if outliers is None else f"{kernel} {bits:g}{share}"


@dataclass(frozen=True)
class Kind:
    """A method at a rate: the nominal bits of a weight, and the share of outliers beside them."""

    method: str
    bits: float
    outliers: float = 0.0

    @property
    def name(self) -> str:
        return f"nearplane-{self.method}"

    @property
    def label(self) -> str:
        return labelled(self.name, self.bits, self.outliers)


def record_of(kind: Kind, rows: int, columns: int) -> Tensor:
    """Return a random matrix as the method would store it; the standard deviation is about 0.02."""
    if kind.method == "ssqr":
        return _dense_record(int(kind.bits), kind.outliers, rows, columns)
    sigma = SIGMAS[kind.method, kind.bits]
    code, base = torch.randn(rows, columns) * sigma, codes.round_base(0.02 / sigma)
    if kind.method == "hptq":
        step, coder = torch.full((1, 1), base), codes.Huffman()
    else:
        code *= _spread(rows)[:, None] * _spread(columns)
        step, coder = (codes.ladder_steps(_spread(columns)) * base)[None], codes.Rans()
    return codes.pack(code.round_().int(), step, columns, None, coder)[0]


def _spread(count: int) -> Tensor:
    return torch.exp(SPREAD * torch.randn(count))


def _dense_record(bits: int, share: float, rows: int, columns: int) -> Tensor:
    half = 2 ** (bits - 1)
    code = torch.randint(-half, half, (rows, columns), dtype=torch.int32)
    step = ((torch.rand(rows, -(-columns // GROUP)) + 0.5) * 0.03 / half).half().float()
    outliers = None
    if share:
        chosen = torch.rand(rows, columns) < share
        start = F.pad(chosen.sum(1).cumsum(0), (1, 0)).int()
        column = chosen.nonzero()[:, 1].int()
        outliers = types.Outliers(start, column, (torch.randn(len(column)) * 0.1).half())
    return codes.pack(code, step, GROUP, outliers, codes.Dense(bits))[0]

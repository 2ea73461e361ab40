"""K-best search on a GPU.

The recursion over columns is that of nearplane/lattice/search.py. A leaf of the recursion, at most
32 columns that are rounded one after the other, is one launch of a Triton kernel.
"""

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from nearplane import lattice
from nearplane.kernels.gpu.nearest_plane import on_gpu
from nearplane.kernels.gpu.portable.start import Launch, start
from nearplane.lattice.nearest_plane import LEAF
from nearplane.lattice.rate_aware import Prices
from nearplane.lattice.search import Beam, ScaledFactor, searched
from nearplane.precision import exact_products

LANES = 32  # of a Triton program: rows times paths
MOST_PATHS = 8  # with more, registers spill on some GPUs


class TritonBeam(Beam):
    """The state of a search whose leaves are rounded by a Triton kernel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        prices, width = self.prices, self.prices.length.shape[1]
        self.tables = {
            "price": (prices.slope * prices.length).to(self.target.dtype),
            "at_row": (prices.row * width + prices.span).to(torch.int32),
            "at_column": (prices.column * width).to(torch.int32),
        }

    def leaf(self, first: int, end: int) -> Int64[Tensor, "rows paths"]:
        """Round columns first .. end − 1, the last one first."""
        parent = torch.empty_like(self.cost, dtype=torch.int64)
        names = ("target", "unit", "best", "error", "code", "cost", "column_cost")
        tensors = {name: getattr(self, name) for name in names}
        n, rows = self.target.shape
        launch = launch_of(rows, n, (first, end), self.prices.span, self.paths)
        start(launch, **tensors, parent=parent, **self.tables)
        self.history.append((first, end, parent))
        return parent


def launch_of(rows: int, n: int, columns: tuple[int, int], span: int, paths: int) -> Launch:
    """Return the launch parameters for columns first .. end − 1."""
    wide = 1 << (paths - 1).bit_length()
    constants = {"PATHS": paths, "WIDE": wide, "COUNT": LEAF, "ROWS": LANES // wide}
    numbers = {"span": span, "rows": rows, "n": n, "first": columns[0], "end": columns[1]}
    grid = (-(-rows // constants["ROWS"]),)
    return Launch("search", grid, numbers, constants, warps=1, fuses=False)


def k_best(
    target: Float[Tensor, "rows n"],
    factor: Float[Tensor, "n n"],
    step: Float[Tensor, "1 n"],
    prices: Prices,
    paths: int,
    scaled: ScaledFactor | None = None,
) -> Int32[Tensor, "rows n"]:
    """Return what `lattice.k_best` returns."""
    if scaled is None:
        scaled = ScaledFactor.of(factor, step, target.dtype)
    with exact_products(target.device):
        return searched(TritonBeam, target, step, prices, paths, scaled)


def _serves(
    target: Tensor,
    factor: Tensor,
    step: Tensor,
    prices: Prices,
    paths: int,
    scaled: ScaledFactor | None = None,
) -> bool:
    return paths <= MOST_PATHS and on_gpu(target, factor)


lattice.k_best.version("triton", _serves)(k_best)

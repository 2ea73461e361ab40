"""How many operations one rounding of a layer starts on a GPU: no GPU is needed.

    .venv/bin/python bench/gpu_launches.py
    .venv/bin/python bench/gpu_launches.py --tiny      a narrow layer

Every method rounds all rows of a layer once, on tensors that have shapes and no numbers (torch's
device "meta"), with the Triton kernels in place. What is counted are torch's operators, without
those that only make another view, and launches of Triton kernels. An operator that is several
kernels in one counts once. A number that is read back, for which a GPU would be waited for, is an
error there: so no sweep does that.

Searches for steps and rates round a layer several times. "steps" are the searches for the steps of
groups, before the first sweep.
"""

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nearplane import lattice
from nearplane.codes.block_types import GRIDS, UNEVEN
from nearplane.kernels.gpu import k_best, nearest_plane
from nearplane.kernels.gpu.portable.start import Launch
from nearplane.lattice import Basis, Levels, Prices
from nearplane.methods import block_steps, steps
from nearplane.methods.eclq import ECLQ
from nearplane.methods.meet_rate import RoundingProblem
from nearplane.methods.watersic import round_columns

SHAPES = ((4096, 4096), (14336, 4096))
BLOCK = 2048  # rows of an output Hessian's diagonal block, at most (nearplane/walk)
CONTEXTS, SYMBOLS = 40, 21
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "alias", "_unsafe_view"}
META = torch.device("meta")


class Started(TorchDispatchMode):
    """Counts what is started inside a `with` block."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not (func.is_view or func.overloadpacket.__name__ in FREE):
            self.count += 1
        return func(*args, **(kwargs or {}))

    def launch(self, launch: Launch, **tensors: Any) -> None:
        self.count += 1


def count(work: Callable[[], Any]) -> int:
    """Return how many operations `work` starts, with the versions for GPUs in place."""
    started = Started()
    with ExitStack() as stack:
        for module in (nearest_plane, k_best):
            stack.enter_context(patch.object(module, "start", started.launch))
        stack.enter_context(lattice.rate_aware_plane.within(nearest_plane.rate_aware_plane))
        stack.enter_context(lattice.k_best.within(k_best.k_best))
        # the type of stored steps depends on them: it is asked for once, before a sweep
        stack.enter_context(patch("nearplane.codes.round_step", lambda step: step))
        stack.enter_context(patch("nearplane.codes.sixteen_bits", lambda *_, **__: torch.float16))
        stack.enter_context(started)
        work()
    return started.count


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


def basis_of(n: int) -> Basis:
    return Basis(empty(n, n), empty(n, dtype=torch.int64), empty(n, n, dtype=torch.float64), 0.01)


def problem(rows: int, n: int, two_sided: bool) -> RoundingProblem:
    """Return a layer with steps of columns; with `two_sided`, of rows and an output Hessian."""
    blocks = [len(part) for part in torch.empty(rows).tensor_split(-(-rows // BLOCK))]
    bases = [basis_of(size) for size in blocks] if two_sided else []
    invperm = empty(n, dtype=torch.int64)
    target, factor = empty(rows, n), empty(n, n, dtype=torch.float64)
    return RoundingProblem(target, factor, empty(1, n), invperm, empty(rows, 1), bases)


def roundings(rows: int, n: int) -> dict[str, Callable[[], Any]]:
    """Return one rounding of all rows by method."""
    target, factor = empty(rows, n), empty(n, n, dtype=torch.float64)
    own, basis = empty(rows, n), basis_of(n)
    whole = [empty(size, dtype=torch.int64) for size in (rows, n)]
    prices = Prices(empty(CONTEXTS, SYMBOLS), *whole)
    levels, limits = Levels.of(UNEVEN, target), (-4, 3)

    def eclq(two_sided: bool, paths: int) -> Callable[[], Any]:
        given, method = problem(rows, n, two_sided), ECLQ(paths=paths)
        return lambda: method.rounded(given, given.unit_step, prices)

    return {
        "hptq": lambda: nearest_plane.nearest_plane(target, factor, empty(1, 1)),
        "gptq": lambda: nearest_plane.nearest_plane(target, factor, own, *limits),
        "ssqr": lambda: nearest_plane.nearest_plane_with_outliers(target, factor, own, *limits),
        "gguf": lambda: nearest_plane.nearest_plane_among(target, factor, own, levels),
        "eclq, rows by themselves": eclq(False, 1),
        "eclq": eclq(True, 1),
        "eclq, 8 paths, rows by themselves": eclq(False, 8),
        "eclq, 8 paths": eclq(True, 8),
        "watersic": lambda: round_columns(target, basis, empty(n), True),
    }


def searches(rows: int, n: int) -> dict[str, Callable[[], Any]]:
    """Return the searches for steps by method."""
    weight, importance, grid = empty(rows, n), empty(n), GRIDS["IQ4_XS"]
    grouped = steps.groups_of(weight, grid.group)
    wide = steps.groups_of(importance[None], grid.group)
    levels = block_steps.levels_of(grid, weight)
    exact = patch.object(steps, "in_float16", lambda step: step)

    def groups() -> None:
        with exact:
            steps.mse_steps(weight, 3, 128)

    return {
        "gptq, ssqr: steps": groups,
        "gguf: steps": lambda: block_steps.steps_of(grid, levels, grouped, wide),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a narrow layer")
    shapes = ((2048, 64),) if parser.parse_args().tiny else SHAPES
    print("| | " + " | ".join(f"{rows} x {n}" for rows, n in shapes) + " |")
    print("|---|" + "---|" * len(shapes))
    tables = [roundings(*shape) | searches(*shape) for shape in shapes]
    for name in tables[0]:
        print(f"| {name} | " + " | ".join(f"{count(t[name]):,}" for t in tables) + " |", flush=True)


if __name__ == "__main__":
    main()

"""A program that torchrun starts several of: what they do together is what one does alone."""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

import nearplane as npl
from nearplane import lattice
from nearplane.cli.failure import exit_when_terminated
from nearplane.lattice import nearest_plane, rate_aware_plane
from nearplane.lattice.rate_aware import Prices
from nearplane.methods import METHODS
from nearplane.methods.certificate import times_triangle
from nearplane.quantize import Watcher
from nearplane.walk.blocks import Layer
from nearplane.walk.hessian import HessianSum
from nearplane.walk.ranks import Ranks

TOKENS = torch.randint(2, 300, (8, 32), generator=torch.Generator().manual_seed(0))


def matrices(rows: int, n: int) -> tuple[Tensor, Tensor]:
    """Return a target and a factor, the same in every process."""
    draws = torch.Generator().manual_seed(rows)
    x = torch.randn(2 * n, n, generator=draws)
    basis = lattice.basis(x.T @ x / len(x), "activation", 0.01)
    return torch.randn(rows, n, generator=draws), basis.factor.float()


def works(rows: int, n: int) -> list[Callable[[], Tensor]]:
    """Return what is shared out by rows, with every form of steps."""
    target, factor = matrices(rows, n)
    draws = torch.Generator().manual_seed(1)
    own = torch.rand(rows, n, generator=draws) + 0.5
    length = torch.rand(6, 9, generator=draws)
    prices = Prices(length, torch.arange(rows) % 3, torch.arange(n) % 4)
    return [
        partial(nearest_plane, target, factor, torch.full((1, 1), 0.3)),
        partial(nearest_plane, target, factor, own[:1]),
        partial(nearest_plane, target, factor, own[:, :1], -2, 1),
        partial(nearest_plane, target, factor, own, low=-4, high=3),
        partial(rate_aware_plane, target, factor, own[:1], prices),
        partial(times_triangle, target.double(), factor.double()),
    ]


def rows_are_rounded_as_alone() -> None:
    """Bit for bit, whatever the number of rows."""
    ranks = Ranks.joined()
    for rows, n in ((1, 40), (511, 40), (513, 96), (1600, 64), (2048, 33)):
        for work in works(rows, n):
            alone = work()
            with ranks.sharing_rows():
                together = work()
            assert torch.equal(alone, together) and alone.dtype == together.dtype


def quantize_on_the_same_hessians(model: str, out: str) -> None:
    """Everybody is given all tokens, so that no sum has another order than alone."""
    whole = patch.object(Ranks, "share", lambda self, tokens: tokens)
    alone = patch.object(HessianSum, "add_up", lambda self, ranks: None)
    for name in ("rtn", "hptq", "ssqr"):
        method = METHODS[name](bpw=6.0) if name == "hptq" else METHODS[name](bits=4, group_size=32)
        with whole, alone:
            npl.quantize(model, f"{out}-{name}", method, TOKENS)


def quantize(model: str, out: str, name: str, dies_after: str) -> None:
    """Quantize; the last process is killed after so many layers, if it is asked for."""
    ranks, count = Ranks.joined(), 0
    put = Layer.assign

    def assign(layer: Layer, value: Tensor) -> None:
        nonlocal count
        count += 1
        if count == int(dies_after):
            os.kill(os.getpid(), signal.SIGKILL)
        put(layer, value)

    if int(dies_after) and ranks.rank == ranks.size - 1:
        patch.object(Layer, "assign", assign).start()
    watcher = Watcher(lambda said: print(said, file=sys.stderr))
    npl.quantize(model, out, METHODS[name](bpw=6.0), TOKENS, resume=True, watcher=watcher)


if __name__ == "__main__":
    torch.set_num_threads(1)
    exit_when_terminated()
    globals()[sys.argv[1]](*sys.argv[2:])

"""What LLL does to nearest plane's error and to the entropy of its integers.

    python bench/lll.py [--hessians FILE.safetensors] [--columns 32 64 128] [--rows 1024]
    python bench/lll.py --tiny

One step for the matrix, so that one reduction serves all rows. FILE holds square matrices; each is
cut to its first K columns. A line compares the reduced basis with plain nearest plane on the same
lattice, at the same step:

    loss      loss(LLL) / loss(plain), summed over rows
    bound     the same of Theorem 5's bound
    largest   largest |code|, plain -> LLL
    entropy   bits per code of one table, plain -> LLL
    net       ½ log₂ of the loss ratio once LLL's step is changed so that its entropy is plain's:
              bits per weight that LLL costs (negative: saves)
    unequal   the same for steps const / R_jj on the plain basis, which need no reduction
    limit     −½ log₂(AM/GM) of the pivots: neither can go below it at high rate
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import tiny
import torch

from nearplane import lattice
from nearplane.lattice.nearest_plane import nearest_plane
from nearplane.lattice.reduce import lll, nearest_plane_reduced, reduced_factor

CONDITIONS = {"mild, 1e1": 1e1, "usual, 1e3": 1e3, "steep, 1e6": 1e6}


def synthetic(columns: int, condition: float, seed: int) -> torch.Tensor:
    """Return a Hessian of rotated Gaussian inputs with a geometric spectrum and loud channels."""
    random = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(columns, columns, generator=random).double()).Q
    spectrum = condition ** -torch.linspace(0, 0.5, columns).double()
    inputs = torch.randn(4 * columns, columns, generator=random).double() * spectrum @ turn
    inputs[:, torch.randint(0, columns, (1 + columns // 32,), generator=random)] *= 5
    return inputs.T @ inputs / len(inputs)


def entropy(code: torch.Tensor) -> float:
    share = code.unique(return_counts=True)[1] / code.numel()
    return float(-(share * share.log2()).sum())


def scale_at(round_with: Callable[[float], torch.Tensor], bits: float) -> float:
    """Return the factor on the steps at which the codes have `bits` of entropy."""
    low, high = -12.0, 6.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy(round_with(2.0**middle)) > bits else (low, middle)
    return 2.0**high


def compare(
    hessian: torch.Tensor, order: str, damping: float, rows: int, bits: float
) -> dict[str, float]:
    """Return one line of the table."""
    basis = lattice.basis(hessian, order, damping)
    random = torch.Generator().manual_seed(1)
    target = torch.randn(rows, len(hessian), generator=random).double()
    factor, equal = basis.factor, torch.ones(1, len(hessian)).double()
    unequal = 1 / factor.diagonal()[None]

    started = time.perf_counter()
    transform = lll(factor, equal)  # a common factor on the steps changes nothing
    seconds = time.perf_counter() - started

    def plain(scale: float, step: torch.Tensor = equal) -> torch.Tensor:
        return nearest_plane(target, factor, step * scale)

    def reduced(scale: float) -> torch.Tensor:
        return nearest_plane_reduced(target, factor, equal * scale, transform)

    def loss(code: torch.Tensor, step: torch.Tensor) -> float:
        return float(((target - step * code) @ factor.T).square().sum())

    scale = scale_at(plain, bits)
    before, after, base = plain(scale), reduced(scale), loss(plain(scale), equal * scale)
    again = scale_at(reduced, bits)
    other = scale_at(lambda x: plain(x, unequal), bits)
    pivots = reduced_factor(factor, equal, transform)[1].diagonal()
    return {
        "loss": loss(after, equal * scale) / base,
        "bound": float(pivots.square().sum() / factor.diagonal().square().sum()),
        "largest": float(before.abs().max()),
        "largest_lll": float(after.abs().max()),
        "entropy": entropy(before),
        "entropy_lll": entropy(after),
        "net": math.log2(loss(reduced(again), equal * again) / base) / 2,
        "unequal": math.log2(loss(plain(other, unequal), unequal * other) / base) / 2,
        "limit": -lattice.am_gm_bits(factor),
        "seconds": seconds,
    }


def hessians(path: Path | None, columns: int) -> dict[str, torch.Tensor]:
    if path is None:
        return {name: synthetic(columns, c, columns) for name, c in CONDITIONS.items()}
    from safetensors.torch import load_file

    square = {k: v for k, v in load_file(path).items() if v.ndim == 2 and len(v) == v.shape[1]}
    return {k: v[:columns, :columns].double() for k, v in square.items() if len(v) >= columns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hessians", type=Path, help="safetensors of square matrices")
    parser.add_argument("--columns", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--bits", type=float, nargs="+", default=[3.0])
    parser.add_argument("--damping", type=float, nargs="+", default=[0.01, 1e-4])
    parser.add_argument("--orders", nargs="+", default=list(lattice.ORDERS))
    args = tiny.parse(parser, columns=[8], rows=32)
    torch.set_num_threads(1)
    head = "loss   bound  largest  entropy       net  unequal   limit     s"
    print(f"hessian            K  order       damping  {head}")
    for columns in args.columns:
        for name, hessian in hessians(args.hessians, columns).items():
            for order in args.orders:
                for damping in args.damping:
                    for bits in args.bits:
                        r = compare(hessian, order, damping, args.rows, bits)
                        print(
                            f"{name[-16:]:16} {columns:4}  {order:10} {damping:8g}  "
                            f"{r['loss']:.3f}  {r['bound']:.3f}  "
                            f"{r['largest']:.0f}->{r['largest_lll']:.0f}  "
                            f"{r['entropy']:.2f}->{r['entropy_lll']:.2f}  {r['net']:+.3f}  "
                            f"{r['unequal']:+.3f}  {r['limit']:+.3f}  {r['seconds']:.2f}"
                        )


if __name__ == "__main__":
    main()

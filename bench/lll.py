"""What LLL does to nearest plane's error and to the entropy of its integers.

    python bench/lll.py [--hessians FILE.safetensors] [--columns 32 64 128] [--rows 1024]

One step for the matrix, so that one reduction serves all rows. FILE holds square matrices; each is
cut to its first K columns. A line compares the reduced basis with plain nearest plane on the same
lattice, at the same step:

    loss      loss(LLL) / loss(plain), summed over rows
    largest   largest |code|, plain -> LLL
    entropy   bits per code of one table, plain -> LLL
    net       entropy(LLL) − entropy(plain) + ½ log₂ loss: bits per weight it costs at equal loss
    unequal   the same for steps const / R_jj on the plain basis, which need no reduction
    limit     −½ log₂(AM/GM) of the pivots: neither can go below it at high rate
"""

import argparse
import math
import time
from pathlib import Path

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


def step_at(target: torch.Tensor, factor: torch.Tensor, bits: float) -> torch.Tensor:
    """Return the step at which plain nearest plane's codes have `bits` of entropy."""
    low, high = -12.0, 6.0
    for _ in range(20):
        middle = (low + high) / 2
        code = nearest_plane(target, factor, torch.full((1, 1), 2.0**middle).double())
        low, high = (middle, high) if entropy(code) > bits else (low, middle)
    return torch.full((1, factor.shape[1]), 2.0**high).double()


def compare(
    hessian: torch.Tensor, order: str, damping: float, rows: int, bits: float
) -> dict[str, float]:
    """Return one line of the table."""
    basis = lattice.basis(hessian, order, damping)
    random = torch.Generator().manual_seed(1)
    target = torch.randn(rows, len(hessian), generator=random).double()
    step = step_at(target, basis.factor, bits)
    started = time.perf_counter()
    transform = lll(basis.factor, step)
    seconds = time.perf_counter() - started
    codes = {
        "plain": nearest_plane(target, basis.factor, step),
        "lll": nearest_plane_reduced(target, basis.factor, step, transform),
    }
    loss = {
        k: float(((target - step * c) @ basis.factor.T).square().sum()) for k, c in codes.items()
    }
    unequal = 1 / basis.factor.diagonal()[None]
    unequal = unequal * (step[0, 0] * basis.factor.diagonal().log().mean().exp())
    other = nearest_plane(target, basis.factor, unequal)
    other_loss = float(((target - unequal * other) @ basis.factor.T).square().sum())
    before = entropy(codes["plain"])
    pivots = reduced_factor(basis.factor, step, transform)[1].diagonal()
    return {
        "loss": loss["lll"] / loss["plain"],
        "bound": float(pivots.square().sum() / (basis.factor.diagonal() * step).square().sum()),
        "largest": float(codes["plain"].abs().max()),
        "largest_lll": float(codes["lll"].abs().max()),
        "entropy": before,
        "entropy_lll": entropy(codes["lll"]),
        "net": entropy(codes["lll"]) - before + math.log2(loss["lll"] / loss["plain"]) / 2,
        "unequal": entropy(other) - before + math.log2(other_loss / loss["plain"]) / 2,
        "limit": -lattice.am_gm_bits(basis.factor),
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
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("hessian            K  order       damping  loss   bound  largest  entropy       net  unequal   limit     s")
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

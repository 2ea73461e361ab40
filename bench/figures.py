"""The figures of docs/guides/mathematics.md, drawn from what nearplane computes.

    .venv/bin/python bench/figures.py            into docs/figures/; `make figures`
    .venv/bin/python bench/figures.py --tiny     smaller problems, into a folder that is removed

Weights are Gaussian, inputs have the correlations that `problem` gives them; all random numbers
have seeds, so that a second run writes the same files.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nearplane as npl
from nearplane import lattice

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
INK, PALE, WARM, COOL = "#333333", "#bbbbbb", "#d1495b", "#00798c"
# R of the plane's lattice: the columns are its basis vectors
PLANE = torch.tensor([[1.0, 0.62], [0.0, 0.55]], dtype=torch.float64)
REACH = 4  # lattice points on each side of zero
ORDERS = {"natural": PALE, "activation": COOL, "min-pivot": WARM}


@dataclass(frozen=True)
class Size:
    """How large a problem is drawn."""

    rows: int
    columns: int
    tokens: int
    rates: tuple[float, ...]


FULL = Size(256, 256, 4096, (2.25, 2.75, 3.25, 3.75, 4.25))
TINY = Size(96, 96, 512, (3.25, 4.25))


def problem(size: Size, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a weight and a Hessian: neighbouring inputs alike, sizes over two orders of ten."""
    draws = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size.tokens, size.columns, generator=draws)
    for column in range(1, size.columns):
        inputs[:, column] += 0.7 * inputs[:, column - 1]
    inputs *= torch.logspace(-1, 1, size.columns)[torch.randperm(size.columns, generator=draws)]
    weight = torch.randn(size.rows, size.columns, generator=draws)
    return weight, inputs.T @ inputs / size.tokens


def closest(target: Tensor) -> Tensor:
    """Return the closest lattice point's codes, by trying all near zero."""
    codes = torch.tensor(list(product(range(-REACH, REACH + 1), repeat=2)), dtype=torch.float64)
    distances = torch.cdist(target @ PLANE.T, codes @ PLANE.T)
    return codes[distances.argmin(1)]


def draw_cells(pyplot: Any, size: Size) -> Any:
    """Draw targets and the lattice points that they are rounded to, in three ways."""
    draws = torch.Generator().manual_seed(3)
    count = 2 * size.rows
    target = (torch.rand(count, 2, generator=draws, dtype=torch.float64) - 0.5) * 3.2
    ones = torch.ones(1, 2, dtype=torch.float64)
    ways = {
        "round to nearest": target.round(),
        "nearest plane (GPTQ)": lattice.nearest_plane(target, PLANE, ones).double(),
        "closest point": closest(target),
    }
    figure, grid = pyplot.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
    for axes, (title, code) in zip(grid, ways.items(), strict=True):
        points, chosen = target @ PLANE.T, code @ PLANE.T
        loss = (points - chosen).square().sum(1)
        at_zero = ~code.any(1)
        axes.plot(*points[~at_zero].T, ".", color=PALE, markersize=2)
        axes.plot(*points[at_zero].T, ".", color=COOL, markersize=3)
        axes.plot(*chosen.unique(dim=0).T, "o", color=INK, markersize=4)
        axes.set(title=f"{title}\nmean loss {loss.mean():.3f}, largest {loss.max():.3f}")
        axes.set(xlim=(-1.6, 1.6), ylim=(-1.1, 1.1), aspect="equal", xticks=[], yticks=[])
    return figure


def draw_bound(pyplot: Any, size: Size) -> Any:
    """Draw measured loss over bound, for rows without and with clipped codes."""
    weight, hessian = problem(size)
    figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    free = npl.HPTQ(bpw=3.25)(weight, hessian)
    ratio = free.damped_loss / free.bound
    axes.hist(ratio, bins=24, color=COOL, label=f"HPTQ: {len(ratio)} rows, all below 1")
    axes.axvline(1 / 3, color=WARM, label="expected: a third of the bound")
    axes.axvline(1, color=INK, label="the bound")
    axes.set(xlabel="damped loss / bound", ylabel="rows", xlim=(0, 1.05))
    axes.legend(fontsize=8)
    return figure


def draw_rates(pyplot: Any, size: Size) -> Any:
    """Draw the relative loss of one layer against bits per weight, a curve a method."""
    weight, hessian = problem(size)
    energy = ((weight @ hessian) * weight).sum()
    entropy_coded = {"HRTN": npl.HRTN, "HPTQ": npl.HPTQ, "WaterSIC": npl.WaterSIC, "ECLQ": npl.ECLQ}
    curves = {name: [of(bpw=rate) for rate in size.rates] for name, of in entropy_coded.items()}
    curves["RTN"] = [npl.RTN(bits=bits, group_size=64) for bits in (2, 3, 4)]
    curves["GPTQ"] = [npl.GPTQ(bits=bits, group_size=64) for bits in (2, 3, 4)]
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, methods in curves.items():
        done = [method(weight, hessian) for method in methods]
        look = "s--" if name in ("RTN", "GPTQ") else "o-"
        losses = [float(each.loss.sum() / energy) for each in done]
        axes.plot([each.bpw for each in done], losses, look, markersize=4, label=name)
    axes.set(xlabel="bits per weight, everything counted", ylabel="relative loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return figure


def draw_orders(pyplot: Any, size: Size) -> Any:
    """Draw squared pivots in the order of rounding, and the bound that they add up to."""
    _, hessian = problem(size)
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    first = None
    for name, colour in ORDERS.items():
        basis = lattice.basis(hessian, name, 0.01)
        squared = basis.factor.diagonal().square().flip(0)  # the first rounded comes first
        whole = float(lattice.bound(basis.factor, torch.ones(1, size.columns))[0])
        first = first or whole
        label = f"{name}: bound {whole / first:.2f}"
        axes.plot(squared, ".", color=colour, markersize=4, label=label)
    axes.set(xlabel="columns, in the order of rounding", ylabel="R_jj²", yscale="log")
    axes.legend(fontsize=8, title="order, and bound for equal steps", title_fontsize=8)
    return figure


DRAWN = {"cells": draw_cells, "bound": draw_bound, "rates": draw_rates, "orders": draw_orders}


def draw(folder: Path, size: Size) -> None:
    """Write all figures to a folder."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"svg.hashsalt": "nearplane", "svg.fonttype": "none"}
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in DRAWN.items():
        file = folder / f"{name}.svg"
        make(pyplot, size).savefig(file, metadata={"Date": None})
        pyplot.close()
        print(file.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="smaller, and kept nowhere")
    if not parser.parse_args().tiny:
        draw(FIGURES, FULL)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), TINY)
    return 0


if __name__ == "__main__":
    sys.exit(main())

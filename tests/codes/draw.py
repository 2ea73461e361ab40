"""Integers and matrices that codes must survive, as hypothesis strategies."""

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from nearplane.types import Outliers

INT32 = np.iinfo(np.int32)
laws = settings(deadline=None)  # a busy machine is not a fault


def gaussian(seed: int, count: int, sigma: float) -> np.ndarray:
    """Return rounded Gaussian numbers, what a lattice method stores."""
    return np.rint(np.random.default_rng(seed).normal(size=count) * sigma).astype(np.int32)


@st.composite
def integers(draw, most: int = 5000) -> np.ndarray:
    """Small alphabets, wide ones, extremes, constants, and Gaussians with huge exceptions."""
    kind = draw(st.sampled_from(["list", "few", "wide", "gaussian", "constant"]))
    if kind == "list":
        extremes = st.sampled_from([INT32.min, INT32.max, 0, -1])
        anything = st.integers(INT32.min, INT32.max) | extremes
        return np.array(draw(st.lists(anything, max_size=50)), np.int32)
    count, seed = draw(st.integers(0, most)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    low = draw(st.sampled_from([INT32.min, -3, 0, INT32.max - 9]))
    if kind == "constant":
        return np.full(count, low, np.int32)
    if kind == "few":
        return (low + rng.integers(0, 10, count)).astype(np.int32)
    if kind == "wide":
        return rng.integers(INT32.min, INT32.max, count, endpoint=True).astype(np.int32)
    result = gaussian(seed, count, draw(st.sampled_from([0.1, 1.05, 4.2, 300.0])))
    exceptions = rng.random(count) < draw(st.sampled_from([0, 0.001, 0.1]))
    result[exceptions] = rng.integers(INT32.min, INT32.max, exceptions.sum(), endpoint=True)
    return result


@st.composite
def matrices(draw, most: int = 5000) -> np.ndarray:
    """The same as matrices, of one row, one column or some of both, with spreads of their own."""
    flat = draw(integers(most))
    columns = draw(st.sampled_from([1, 2, 7, 64, 129, max(1, len(flat))]))
    matrix = flat[: len(flat) // columns * columns].reshape(-1, columns)
    if draw(st.booleans()):
        rng = np.random.default_rng(len(flat))
        rows, columns = (np.exp2(rng.normal(size=size)) for size in matrix.shape)
        matrix = (matrix * rows[:, None] * columns).clip(INT32.min, INT32.max).astype(np.int32)
    return matrix


def spread(seed: int, rows: int, columns: int, sigma: float, octaves: float) -> np.ndarray:
    """Return rounded Gaussian numbers whose spread varies from row to row and column to column."""
    rng = np.random.default_rng(seed)
    row, column = (np.exp2(octaves * rng.normal(size=size)) for size in (rows, columns))
    return np.rint(rng.normal(size=(rows, columns)) * sigma * row[:, None] * column).astype(
        np.int32
    )


def outliers(seed: int, rows: int, columns: int, rate: float) -> Outliers:
    """Return outliers in about `rate` of all places."""
    generator = torch.Generator().manual_seed(seed)
    there = torch.rand(rows, columns, generator=generator) < rate
    start = torch.zeros(rows + 1, dtype=torch.int32)
    start[1:] = there.sum(1).cumsum(0)
    column = there.nonzero()[:, 1].to(torch.int32)
    return Outliers(start, column, torch.randn(len(column), generator=generator).half())

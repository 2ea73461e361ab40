"""Optimal length-limited Huffman code lengths: the package-merge algorithm [Larmore90]."""

import numpy as np
from jaxtyping import Int64, UInt8


def code_lengths(
    counts: Int64[np.ndarray, " symbols"], limit: int
) -> UInt8[np.ndarray, " symbols"]:
    """Return code lengths that minimise Σ count · length with every length at most `limit`.

    Symbols of count 0 get length 0. If only one symbol occurs, it gets length 1. Ties are broken by
    the order of symbols, so the same counts always give the same lengths. ValueError if `limit`
    bits have fewer code words than there are symbols.
    """
    lengths = np.zeros(len(counts), np.uint8)
    present = np.flatnonzero(counts)
    if len(present) == 1:
        lengths[present] = 1
    if len(present) < 2:
        return lengths
    order = present[np.argsort(counts[present], kind="stable")]
    for leaves in _leaves_taken(counts[order], limit):
        # every level on which a leaf is taken makes its code word one bit longer
        lengths[order[:leaves]] += 1
    return lengths


def code_cost(counts: Int64[np.ndarray, " symbols"], limit: int) -> int:
    """Return Σ count · length for the lengths of `code_lengths`, without computing them."""
    leaves = np.sort(counts[counts > 0])
    if len(leaves) < 2:
        return int(leaves.sum())
    _check_limit(len(leaves), limit)
    items = leaves
    for _ in range(limit - 1):
        items = np.sort(np.concatenate([leaves, _packages(items)]), kind="stable")
    return int(items[: 2 * len(leaves) - 2].sum())


def _leaves_taken(leaves: np.ndarray, limit: int) -> list[int]:
    """Return how many of the n sorted `leaves` are taken on each level of package-merge.

    On every level, items are leaves and packages of two items of the level below. The cheapest
    2n − 2 items of the top level are taken, and what their packages hold.
    """
    n = len(leaves)
    _check_limit(n, limit)
    items, leaves_before = leaves, [np.arange(n + 1)]
    for _ in range(limit - 1):
        both = np.concatenate([leaves, _packages(items)])
        order = np.argsort(both, kind="stable")
        items = both[order]
        leaves_before.append(np.concatenate([[0], np.cumsum(order < n)]))
    taken, counts = 2 * n - 2, []
    for before in reversed(leaves_before):
        counts.append(int(before[taken]))
        # the other items are packages: each stands for two items of the level below
        taken = 2 * (taken - counts[-1])
    return counts


def _packages(items: np.ndarray) -> np.ndarray:
    """Return the sums of neighbouring pairs; an odd last item is dropped."""
    pairs = len(items) // 2
    return items[: 2 * pairs : 2] + items[1 : 2 * pairs : 2]


def _check_limit(symbols: int, limit: int) -> None:
    if symbols > 1 << limit:
        raise ValueError(f"{symbols} symbols need codes longer than {limit=} bits")

"""Which layout of a record to multiply by: the compact one, or the one in codes of fixed width."""

import functools
import os
import re
from functools import partial
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from nearplane.codes import resident
from nearplane.kernels.cpu.layout import pack
from nearplane.kernels.cpu.library import chosen
from nearplane.kernels.cpu.linear import linear
from nearplane.kernels.cpu.trial import SIDE, layouts, seconds

LEAST_WEIGHTS = 1 << 16  # of a matrix: what is smaller gains nothing
TRIALS = 12  # of each layout
ROOM = 4  # a layout may take a quarter of the memory that is available


def lay_out(record: UInt8[Tensor, " bytes"], rows: int, columns: int) -> Tensor | None:
    """Return the layout that was asked for by `resident.wanting`; None if there is none."""
    fast = prefers_fast(record, rows * columns)
    layout = pack(record, resident.input_bits()) if fast else None
    return pack(record) if layout is None else layout


def prefers_fast(record: UInt8[Tensor, " bytes"], weights: int) -> bool:
    """Return whether a record is to be laid out in codes of fixed width, as asked or by choice."""
    form = resident.wanted()
    if form != resident.AUTO:
        return form == resident.FAST
    if weights < LEAST_WEIGHTS or ROOM * 2 * len(record) > available_bytes():
        return False
    return fast_is_faster(chosen(), torch.get_num_threads())


@functools.cache
def fast_is_faster(instruction_set: str, threads: int) -> bool:
    """Return whether products with one row of activations take less time; timed once."""
    compact, fast = layouts()
    if compact is None or fast is None:
        return fast is not None
    x = torch.randn(1, SIDE)
    calls = [partial(linear, x, layout, SIDE, None) for layout in (compact, fast)]
    slow, quick = seconds(calls, TRIALS)
    return quick < slow


def available_bytes() -> float:
    """Return how many bytes of memory are available; infinity where the system does not say."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        return float(found[1]) * 1024 if found else float("inf")
    except OSError:
        names = getattr(os, "sysconf_names", {})
        if "SC_AVPHYS_PAGES" not in names:
            return float("inf")
        return float(os.sysconf("SC_AVPHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")

"""Decoding rANS streams in C++ (docs/formats/rans.md)."""

import ctypes

import numpy as np
import torch
from jaxtyping import Int32

from nearplane.codes.bands import Frequencies, Words
from nearplane.codes.corrupt import require
from nearplane.kernels.cpu.library import RansBands, kernels


def decode(
    streams: list[Words], shape: tuple[int, int], frequencies: Frequencies
) -> Int32[np.ndarray, "rows columns"]:
    """Return what `bands.decode_bands` returns; CorruptError if a stream is damaged."""
    streams = [np.ascontiguousarray(words) for words in streams]
    lists = [frequencies.row, frequencies.column, frequencies.table, frequencies.symbol]
    row, column, table, symbol = (np.ascontiguousarray(part, np.int64) for part in lists)
    addresses = np.array([words.ctypes.data for words in streams], np.uint64)
    sizes = np.array([len(words) for words in streams], np.uint64)
    parts = addresses, sizes, row, column, table, symbol
    numbers = *shape, len(streams), len(row), len(column), *symbol.shape
    bands = RansBands(*numbers, *(part.ctypes.data for part in parts))
    result = np.empty(shape, np.int32)
    whole = kernels().np_rans(ctypes.byref(bands), result.ctypes.data, torch.get_num_threads())
    require(bool(whole), "a stream does not end with its integers")
    return result

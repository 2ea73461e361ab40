"""The shared library of C++ kernels, as Python functions."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch

from nearplane.kernels.cpu.find import find

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
NAMES = ("plain", "avx2", "avx512", "avx512_bf16")

_u32, _u64, _unsigned, _ptr = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint, ctypes.c_void_p


class Matrix(ctypes.Structure):
    """What a record holds, as the library takes it."""

    _fields_ = [
        *((name, _u32) for name in ("rows", "columns", "group_size")),
        *((name, _u32) for name in ("step_form", "code_tag", "step_type")),
        *((name, _ptr) for name in ("code", "step")),
        *((name, _ptr) for name in ("outlier_start", "outlier_column", "outlier_value")),
        ("stored_bytes", _u64),
        ("coder", _u32),
    ]


class RansBands(ctypes.Structure):
    """Streams and what makes them readable, as the library takes them."""

    _fields_ = [
        *((name, _u32) for name in ("rows", "columns", "bands", "row_classes", "column_classes")),
        *((name, _u32) for name in ("tables", "symbols")),
        *((name, _ptr) for name in ("stream", "words", "row_frequency", "column_frequency")),
        *((name, _ptr) for name in ("table", "frequency")),
    ]


class Leaf(ctypes.Structure):
    """Columns of a sweep that are rounded one after the other, as the library takes them."""

    _fields_ = [
        *((name, _u32) for name in ("rows", "columns", "first", "end", "wide")),
        ("span", ctypes.c_int32),
        *((name, ctypes.c_double) for name in ("low", "high")),
        *((name, _ptr) for name in ("target", "unit", "best", "step", "error", "code")),
        *((name, _ptr) for name in ("threshold", "at_row", "at_column")),
    ]


SIGNATURES = {
    "np_set_fork": (None, [_ptr]),
    "np_available": (ctypes.c_int, [ctypes.c_char_p]),
    "np_choose": (ctypes.c_int, [ctypes.c_char_p]),
    "np_chosen": (ctypes.c_char_p, []),
    "np_pack": (_ptr, [ctypes.POINTER(Matrix), _unsigned, ctypes.POINTER(_u64)]),
    "np_take": (None, [_ptr, _ptr]),
    "np_check": (ctypes.c_char_p, [_ptr, _u64]),
    "np_product": (ctypes.c_int, [_ptr, _ptr, _u32, _u32, _ptr, _ptr, _unsigned]),
    "np_weight": (ctypes.c_int, [_ptr, _u32, _ptr, _unsigned]),
    "np_codes": (ctypes.c_int, [_ptr, _ptr, _unsigned]),
    "np_leaf": (None, [ctypes.POINTER(Leaf)]),
    "np_steps": (None, [_ptr, _ptr]),
    "np_rans": (ctypes.c_int, [ctypes.POINTER(RansBands), _ptr, _unsigned]),
    "np_outliers": (_u64, [_ptr, _ptr, _ptr, _ptr]),
}
SHORT = (-1, 2**64 - 1, b"memory")  # what functions return where memory is short


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library, on torch's own threads; None where it was not built."""
    path = find()
    if path is None:
        return None
    opened = ctypes.CDLL(str(path))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(opened, name)
        function.restype, function.argtypes = result, arguments
        function.errcheck = _require_memory
    opened.np_set_fork(_openmp_fork())
    return opened


def available() -> list[str]:
    """Return the instruction sets that this processor has kernels for, the slowest first."""
    lib = library()
    return [] if lib is None else [name for name in NAMES if lib.np_available(name.encode())]


def chosen() -> str:
    """Return the instruction set whose kernels run."""
    lib = library()
    return "" if lib is None else lib.np_chosen().decode()


def choose(name: str) -> None:
    """Run the kernels of one instruction set from now on; ValueError if this machine lacks it."""
    lib = library()
    if lib is None or not lib.np_choose(name.encode()):
        raise ValueError(f"no kernels for {name!r} run here; there are {available()}")


def _require_memory(result: Any, function: Any, arguments: tuple[Any, ...]) -> Any:
    """Return the result of a call; MemoryError where it was short of memory."""
    if result in SHORT:
        raise MemoryError("the kernels need more memory than there is")
    return result


def _openmp_fork() -> int | None:
    """Return the address of GOMP_parallel in the OpenMP runtime that torch computes with."""
    # one pool for both: threads of a second one would wait for cores that the first still spins on
    folder = Path(torch.__file__).parent
    for pattern in ("lib/*omp*.so*", "../torch.libs/*omp*.so*"):
        for path in sorted(folder.glob(pattern)):
            runtime = ctypes.CDLL(str(path))
            if hasattr(runtime, "GOMP_parallel"):
                return ctypes.cast(runtime.GOMP_parallel, _ptr).value
    return None

"""Loading the shared library of C++ kernels through ctypes, and the types of its functions."""

import ctypes
import functools
import itertools
from pathlib import Path
from typing import Any

import torch

from nearplane.kernels.cpu.find import find

# what the library calls each type of activations
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

_u32, _u64, _unsigned, _ptr = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint, ctypes.c_void_p


class Matrix(ctypes.Structure):
    """The contents of a record, as np_pack takes them."""

    _fields_ = [
        *((name, _u32) for name in ("rows", "columns", "group_size")),
        *((name, _u32) for name in ("step_form", "code_tag", "step_type")),
        *((name, _ptr) for name in ("code", "step", "row_step")),
        *((name, _ptr) for name in ("outlier_start", "outlier_column", "outlier_value")),
        ("stored_bytes", _u64),
        ("coder", _u32),
        ("input_bits", _u32),
    ]


class RansBands(ctypes.Structure):
    """rANS streams and their frequencies, as np_rans takes them (nearplane/codes/bands.py)."""

    _fields_ = [
        *((name, _u32) for name in ("rows", "columns", "bands", "row_classes", "column_classes")),
        *((name, _u32) for name in ("tables", "symbols")),
        *((name, _ptr) for name in ("stream", "words", "row_frequency", "column_frequency")),
        *((name, _ptr) for name in ("table", "frequency")),
    ]


class Leaf(ctypes.Structure):
    """At most 32 columns for np_leaf to round one after the other (`Leaf` in src/kernels.h)."""

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
    "np_name": (ctypes.c_char_p, [_unsigned]),
    "np_pack": (_ptr, [ctypes.POINTER(Matrix), _unsigned, ctypes.POINTER(_u64)]),
    "np_take": (None, [_ptr, _ptr]),
    "np_check": (ctypes.c_char_p, [_ptr, _u64]),
    "np_product": (ctypes.c_int, [_ptr, _ptr, _u32, _u32, _ptr, _ptr, _unsigned]),
    "np_attention_inputs": (ctypes.c_int, [*[_ptr] * 7, _unsigned]),
    "np_after_attention": (ctypes.c_int, [*[_ptr] * 4, _unsigned]),
    "np_weight": (ctypes.c_int, [_ptr, _u32, _ptr, _unsigned]),
    "np_row_reader": (_ptr, [_ptr]),
    "np_free_row_reader": (None, [_ptr]),
    "np_rows": (ctypes.c_int, [_ptr, _ptr, _ptr, _u32, _u32, _ptr, _unsigned]),
    "np_codes": (ctypes.c_int, [_ptr, _ptr, _unsigned]),
    "np_leaf": (None, [ctypes.POINTER(Leaf)]),
    "np_steps": (None, [_ptr, _ptr]),
    "np_row_steps": (None, [_ptr, _ptr]),
    "np_rans": (ctypes.c_int, [ctypes.POINTER(RansBands), _ptr, _unsigned]),
    "np_outliers": (_u64, [_ptr, _ptr, _ptr, _ptr]),
}
OUT_OF_MEMORY = (-1, 2**64 - 1, b"memory")  # what functions return when memory runs out


@functools.cache
def library() -> ctypes.CDLL | None:
    """Open the library, on the threads that torch uses; None if it was not built."""
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


def kernels() -> ctypes.CDLL:
    """Return the library, which is there: what calls this is registered only where it was built."""
    opened = library()
    assert opened is not None
    return opened


def available() -> list[str]:
    """Return the instruction sets with kernels that this processor can run, slowest first."""
    lib = library()
    if lib is None:
        return []
    names = iter(map(lib.np_name, itertools.count()).__next__, None)
    return [name.decode() for name in names if lib.np_available(name)]


def chosen() -> str:
    """Return the instruction set whose kernels are in use; "" if the library was not built."""
    lib = library()
    return "" if lib is None else lib.np_chosen().decode()


def choose(name: str) -> None:
    """Use the kernels of an instruction set from now on; ValueError if it is not available."""
    lib = library()
    if lib is None or not lib.np_choose(name.encode()):
        raise ValueError(f"no kernels for {name!r} run here; there are {available()}")


def _require_memory(result: Any, function: Any, arguments: tuple[Any, ...]) -> Any:
    """Return the result of a call; MemoryError if memory ran out in it."""
    if result in OUT_OF_MEMORY:
        raise MemoryError("the kernels need more memory than there is")
    return result


def _openmp_fork() -> int | None:
    """Return the address of GOMP_parallel in the OpenMP runtime that torch has loaded."""
    # with a second pool of threads, its threads would wait for cores on which the first pool spins
    folder = Path(torch.__file__).parent
    for pattern in ("lib/*omp*.so*", "../torch.libs/*omp*.so*"):
        for path in sorted(folder.glob(pattern)):
            runtime = ctypes.CDLL(str(path))
            if hasattr(runtime, "GOMP_parallel"):
                return ctypes.cast(runtime.GOMP_parallel, _ptr).value
    return None

"""Compiling CUDA C++ at run time with NVRTC, which comes with CUDA builds of torch."""

import ctypes
import functools
import sys
from pathlib import Path

import torch

from nearplane.kernels.gpu.cuda.programs import Program, sources

# where a CUDA toolkit is commonly installed
SYSTEM = (Path("/usr/local/cuda/lib64/libnvrtc.so"),)
OPTIONS = ("--std=c++17", "--device-as-default-execution-space")


class CompileError(RuntimeError):
    """NVRTC failed or is missing; the message has its log, if there is one."""


@functools.cache
def capabilities() -> list[int]:
    """Return the compute capabilities that NVRTC can compile for; [] if it is not installed."""
    lib, count = _library(), ctypes.c_int()
    if lib is None:
        return []
    _check(lib.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    found = (ctypes.c_int * count.value)()
    _check(lib.nvrtcGetSupportedArchs(found))
    return list(found)


@functools.cache
def cubin(program: Program, capability: int) -> bytes:
    """Return machine code for GPUs of a compute capability such as 80 or 90.

    CompileError if NVRTC is missing or refuses the program.
    """
    lib, headers = _library(), sources()
    if lib is None:
        raise CompileError("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    names, texts = (_strings(part) for part in (headers.keys(), headers.values()))
    made, text = ctypes.c_void_p(), program.text().encode()
    name = f"{program.name}_program.cu".encode()
    _check(lib.nvrtcCreateProgram(ctypes.byref(made), text, name, len(headers), texts, names))
    try:
        options = _strings([*OPTIONS, f"--gpu-architecture=sm_{capability}"])
        if lib.nvrtcCompileProgram(made, len(options), options):
            raise CompileError(f"{program.name} for sm_{capability}: {_log(lib, made)}")
        size = ctypes.c_size_t()
        _check(lib.nvrtcGetCUBINSize(made, ctypes.byref(size)))
        code = ctypes.create_string_buffer(size.value)
        _check(lib.nvrtcGetCUBIN(made, code))
        return code.raw
    finally:
        lib.nvrtcDestroyProgram(ctypes.byref(made))


@functools.cache
def _library() -> ctypes.CDLL | None:
    """Open NVRTC from an nvidia package beside torch, or from the system; None if there is none."""
    folders = [Path(entry) / "nvidia" for entry in sys.path if entry]
    found = [p for folder in folders for p in sorted(folder.glob("*/lib/libnvrtc.so.*"))]
    # prefer the CUDA version of torch: the driver runs torch, so it can load what that NVRTC makes
    version = (torch.version.cuda or "").split(".")[0]
    found.sort(key=lambda path: path.suffix != f".{version}")
    for path in (*found, *SYSTEM):
        try:
            # NVRTC opens its builtins by name, and finds them if they are already loaded
            for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    return None


def _strings(texts) -> ctypes.Array:
    encoded = [text.encode() for text in texts]
    return (ctypes.c_char_p * len(encoded))(*encoded)


def _check(result: int) -> None:
    if result:
        raise CompileError(f"NVRTC failed with error {result}")


def _log(lib: ctypes.CDLL, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    _check(lib.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
    log = ctypes.create_string_buffer(size.value)
    _check(lib.nvrtcGetProgramLog(program, log))
    return log.value.decode().strip()

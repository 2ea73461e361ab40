"""NVIDIA's compiler at run time, as CUDA builds of torch bring it: no nvcc is needed."""

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
    """NVRTC refused a program; the message is its log."""


@functools.cache
def capabilities() -> list[int]:
    """Return the compute capabilities that the NVRTC of this installation knows; [] without one."""
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

    CompileError if this NVRTC cannot make it.
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
    """Return NVRTC: of torch's own CUDA, of a package of its own, or of the system."""
    folders = [Path(entry) / "nvidia" for entry in sys.path if entry]
    found = [p for folder in folders for p in sorted(folder.glob("*/lib/libnvrtc.so.*"))]
    # a driver that serves this torch loads what a compiler of the same version makes
    version = (torch.version.cuda or "").split(".")[0]
    found.sort(key=lambda path: path.suffix != f".{version}")
    for path in (*found, *SYSTEM):
        try:
            # it looks for its builtins by name, which finds them once they are loaded
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

"""Starting kernels on an NVIDIA GPU through the CUDA driver API."""

import ctypes
import functools

import torch

from nearplane.kernels.gpu.cuda.launches import Launch
from nearplane.kernels.gpu.cuda.nvrtc import cubin
from nearplane.kernels.gpu.cuda.programs import Program

MAX_SHARED_ATTRIBUTE = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
DEFAULT_SHARED = 48 * 1024  # bytes of shared memory that a kernel may use without asking


class Gpu:
    """Runs launches on the current stream of a GPU; compiles each program at its first launch."""

    def run(self, launch: Launch, device: torch.device) -> None:
        """Start a launch; RuntimeError if the driver refuses it."""
        with torch.cuda.device(device):
            function = _function(launch.program, torch.cuda.current_device())
            _allow_shared(function.value or 0, launch.shared)
            stream = torch.cuda.current_stream().cuda_stream
            arguments = (ctypes.c_void_p * 1)(ctypes.addressof(launch.args))
            grid = launch.grid, 1, 1, launch.program.threads, 1, 1
            if launch.grid:
                _check(
                    _driver().cuLaunchKernel(
                        function, *grid, launch.shared, ctypes.c_void_p(stream), arguments, None
                    ),
                    launch.program.name,
                )


@functools.cache
def _function(program: Program, device: int) -> ctypes.c_void_p:
    """Compile a program, load it on the current GPU, and return its kernel."""
    major, minor = torch.cuda.get_device_capability(device)
    code = cubin(program, 10 * major + minor)
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    name = program.name.encode()
    _check(_driver().cuModuleLoadData(ctypes.byref(module), code), program.name)
    _check(_driver().cuModuleGetFunction(ctypes.byref(function), module, name), program.name)
    return function


_allowed: dict[int, int] = {}


def _allow_shared(function: int, shared: int) -> None:
    """Allow a kernel to use `shared` bytes of shared memory."""
    if shared > _allowed.get(function, DEFAULT_SHARED):
        _check(
            _driver().cuFuncSetAttribute(ctypes.c_void_p(function), MAX_SHARED_ATTRIBUTE, shared),
            "shared",
        )
        _allowed[function] = shared


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _check(result: int, what: str) -> None:
    if result:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(text))
        reason = text.value.decode() if text.value else f"error {result}"
        raise RuntimeError(f"the CUDA driver refused the kernel {what!r}: {reason}")

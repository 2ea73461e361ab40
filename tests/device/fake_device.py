"""A second device that every machine has: its tensors are apart from the CPU's, its numbers equal.

`install` compiles fake_device.cpp, some seconds, and gives it to torch as the device "fake".
"""

import ctypes
import functools
import hashlib
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).with_name("fake_device.cpp")
DEVICE = torch.device("privateuseone", 0)  # "fake" once it is installed


class Memory:
    """What the device holds, and what was copied; numbers in bytes."""

    def __init__(self, library: ctypes.CDLL):
        self.library = library
        for name in ("held", "peak", "to_device", "to_host"):
            getattr(library, f"fake_{name}").restype = ctypes.c_int64
        library.fake_limit.argtypes = [ctypes.c_int64]

    def __getattr__(self, name: str) -> int:
        return getattr(self.library, f"fake_{name}")()

    def limit(self, bytes_: int | None) -> None:
        self.library.fake_limit(-1 if bytes_ is None else bytes_)

    def reset(self) -> None:
        self.library.fake_reset()


@functools.cache
def install() -> Memory:
    """Compile and load the device; skips the test where there is no C++ compiler."""
    torch.ops.load_library(str(compiled()))
    memory = Memory(ctypes.CDLL(str(compiled())))
    torch.utils.rename_privateuse1_backend("fake")
    torch._register_device_module("fake", module(memory))
    torch.utils.generate_methods_for_privateuse1_backend()
    return memory


def compiled() -> Path:
    """Return the library, compiled once for this torch."""
    root = Path(torch.__file__).parent
    # the library finds torch's where they lay when it was compiled
    version = torch.__version__.encode() + str(root).encode()
    key = hashlib.sha256(SOURCE.read_bytes() + version).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"nearplane-tests-{key}"
    folder.mkdir(exist_ok=True)
    path = folder / "fake_device.so"
    if path.exists():
        return path
    includes = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    fresh = Path(tempfile.mkdtemp(dir=folder)) / path.name
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", *includes, str(SOURCE), "-o", str(fresh)]
    libraries = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{root / 'lib'}"]
    try:
        subprocess.run(["c++", *flags, *libraries], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no C++ compiler")
    fresh.rename(path)  # at once: other processes of the tests may compile it, too
    return path


def module(memory: Memory) -> types.ModuleType:
    """Return what torch calls torch.fake."""
    made = types.ModuleType("torch.fake")
    made.__dict__.update(
        is_available=lambda: True,
        is_initialized=lambda: True,
        _is_in_bad_fork=lambda: False,
        device_count=lambda: 1,
        current_device=lambda: 0,
        manual_seed_all=lambda seed: None,
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
        synchronize=lambda device=None: None,
        empty_cache=lambda: None,
        mem_get_info=lambda device=None: free(memory),
        max_memory_allocated=lambda device=None: memory.peak,
    )
    sys.modules["torch.fake"] = made
    return made


def free(memory: Memory) -> tuple[int, int]:
    """Return bytes that are free, and all bytes, of a device of 1 GiB."""
    return (1 << 30) - memory.held, 1 << 30

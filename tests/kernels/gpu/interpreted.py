"""Triton's interpreter, which runs kernels on a CPU, made to compute as GPUs do.

Triton decides at its import whether it interprets, so tests that need it run in a process of their
own: `run` starts pytest there, and modules call `only_here` to be left out everywhere else.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[3]


def run(*arguments: str, timeout: int = 600) -> subprocess.CompletedProcess:
    """Run pytest in a process in which Triton interprets."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    # a worker of xdist tells its children that they are workers too
    environment = {name: value for name, value in environment.items() if "XDIST" not in name}
    command = [sys.executable, "-m", "pytest", "-n0", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )


def only_here() -> None:
    """Skip a module's tests in a process in which Triton does not interpret."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("run by test_portable_process.py", allow_module_level=True)
    correct()


@functools.cache
def correct() -> None:
    """Let bfloat16 be rounded to nearest and multiplied as numbers.

    The interpreter cuts float32 off where GPUs round, and multiplies the bits of bfloat16.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    convert, builder = interpreter._convert_float, interpreter.InterpreterBuilder
    dot = builder.create_dot

    def converted(data, source, target, rounding):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(data, source, target, rounding)
        exact = torch.from_numpy(np.array(data, np.float32))
        return exact.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)

    def multiplied(self, a, b, *others):
        wide = [self.cast_impl(x, tl.float32) if x.dtype == tl.bfloat16 else x for x in (a, b)]
        return dot(self, *wide, *others)

    interpreter._convert_float, builder.create_dot = converted, multiplied

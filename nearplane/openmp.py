"""How threads wait for each other; importing this decides it, before torch is imported.

OpenMP's threads spin for milliseconds before they sleep. On cores that other programs want, too,
that takes the time of those who have work; this file lets them sleep after some microseconds.
"""

import os
import sys

# libgomp: turns of a loop; and libomp of LLVM and Intel: milliseconds. Both are read when the
# library is loaded, and what somebody has set stays
SETTINGS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}


def wait_passively() -> None:
    """Let threads of torch sleep soon when they wait; without effect once torch is imported."""
    if "torch" in sys.modules or "OMP_WAIT_POLICY" in os.environ:
        return
    added = [name for name in SETTINGS if name not in os.environ]
    os.environ.update({name: SETTINGS[name] for name in added})
    try:
        import torch  # noqa: F401
    finally:
        # of this process alone
        for name in added:
            del os.environ[name]


wait_passively()

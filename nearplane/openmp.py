"""Let OpenMP threads sleep soon while they wait; to be imported before torch.

By default they spin for milliseconds before they sleep, which takes CPU time from other threads
and programs on the same cores. With SETTINGS they sleep after microseconds.
"""

import os
import sys

# GOMP_SPINCOUNT (libgomp) counts turns of a loop, KMP_BLOCKTIME (libomp of LLVM and Intel)
# milliseconds. The libraries read them when they are loaded; values that the user has set are kept
SETTINGS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}


def wait_passively() -> None:
    """Import torch with SETTINGS in the environment.

    Does nothing if torch is imported already, or if the user has set OMP_WAIT_POLICY.
    """
    if "torch" in sys.modules or "OMP_WAIT_POLICY" in os.environ:
        return
    added = [name for name in SETTINGS if name not in os.environ]
    os.environ.update({name: SETTINGS[name] for name in added})
    try:
        import torch  # noqa: F401
    finally:
        # processes that this one starts must not inherit them
        for name in added:
            del os.environ[name]


wait_passively()

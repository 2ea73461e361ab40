"""What a run ran on, for its report: no names of hosts or people."""

import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nearplane.version import __version__

PROCESSORS = Path("/proc/cpuinfo")


def machine(threads: int, accelerator: str, processes: int) -> dict[str, Any]:
    """Return the processor, the memory, and the versions that a result may depend on.

    - `accelerator`: the name of the device that blocks ran on; "" for the processor.
    - "peak_memory_bytes": the most that this process had in memory so far.
    """
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "processes": processes,
        "accelerator": accelerator,
        "memory_bytes": memory_bytes(),
        "peak_memory_bytes": peak_memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "nearplane": __version__,
            "python": platform.python_version(),
            **{name: known for name in ("torch", "transformers") if (known := version_of(name))},
        },
    }


def processor() -> str:
    """Return the processor's name as the system tells it."""
    try:
        lines = PROCESSORS.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Return how much memory the machine has, or None where that cannot be asked."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def peak_memory_bytes() -> int:
    """Return the most memory that this process had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def version_of(package: str) -> str:
    """Return the version of an installed package; "" if it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""

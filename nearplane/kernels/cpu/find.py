"""The path of the compiled shared library, if this installation has one."""

import sys
from pathlib import Path


def find() -> Path | None:
    """Return the path of nearplane_cpu.so (or .dll) beside this file, or None."""
    suffix = "dll" if sys.platform == "win32" else "so"
    path = Path(__file__).with_name(f"nearplane_cpu.{suffix}")
    return path if path.is_file() else None

"""Where the compiled kernels lie, if this installation has them."""

import sys
from pathlib import Path


def find() -> Path | None:
    """Return the path of the library `nearplane_cpu`: beside this file, installed or editable."""
    suffix = "dll" if sys.platform == "win32" else "so"
    path = Path(__file__).with_name(f"nearplane_cpu.{suffix}")
    return path if path.is_file() else None

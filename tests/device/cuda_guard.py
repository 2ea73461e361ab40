"""Give a torch without CUDA a CUDA device that is never busy: cuda_guard.cpp."""

import ctypes
import hashlib
import importlib.util
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".cpp")


def load() -> None:
    """Compile the library, once for this torch, and load it; before torch is imported."""
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    root = Path(found.origin).parent
    # the library finds torch's where they lay when it was compiled
    version = (root / "version.py").read_bytes() + str(root).encode()
    key = hashlib.sha256(SOURCE.read_bytes() + version).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"nearplane-tests-{key[:16]}"
    folder.mkdir(exist_ok=True)
    path = folder / "cuda_guard.so"
    if not path.exists():
        # at once: other processes of the tests may compile it, too
        compiled(root, Path(tempfile.mkdtemp(dir=folder)) / path.name).rename(path)
    ctypes.CDLL(str(path))


def compiled(root: Path, path: Path) -> Path:
    """Compile the library for the torch in a directory."""
    includes = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{root / 'lib'}"]
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", *includes, str(SOURCE), "-o", str(path)]
    subprocess.run(["c++", *flags, *libraries], check=True, capture_output=True, text=True)
    return path

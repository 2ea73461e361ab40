"""Make one virtual environment per peer, so that their pins do not meet nearplane's.

    python bench/peers/environment.py [FOLDER] [--only NAME ...]

Prints one line per peer; a second call with nothing to do takes a second. FOLDER defaults to
bench-out/peers, which git ignores; it grows to about 3 GB.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "bench-out" / "peers"

# torch is pinned on the same command line: only this version comes as a CPU build
TORCH = "torch==2.13.0"
# name -> (requirement, module that must import)
PEERS = {
    "gptqmodel": ("gptqmodel==7.6.0", "gptqmodel"),
    "llmcompressor": ("llmcompressor==0.14.0", "llmcompressor"),
}


class InstallError(RuntimeError):
    """A peer did not install or does not import; the message is one line."""


def peer_python(name: str, folder: Path = FOLDER) -> Path:
    """Return the interpreter of a peer's environment."""
    return folder.resolve() / name / "bin" / "python"


def installed(name: str, folder: Path = FOLDER) -> bool:
    """Whether `install` has finished for exactly the requirements of today."""
    stamp = folder / name / "requirements.txt"
    return stamp.exists() and stamp.read_text() == requirements(name)


def requirements(name: str) -> str:
    return f"{TORCH}\n{PEERS[name][0]}\n"


def install(name: str, folder: Path = FOLDER) -> None:
    """Make the environment of one peer, or leave it as it is; output goes to FOLDER/NAME.log."""
    if installed(name, folder):
        return
    requirement, module = PEERS[name]
    folder.mkdir(parents=True, exist_ok=True)
    python = str(peer_python(name, folder))
    with (folder / f"{name}.log").open("w") as log:
        if not Path(python).exists():
            _run([sys.executable, "-m", "venv", str(folder / name)], log)
        # torch goes first: an sdist may look for it while it builds
        _run([python, "-m", "pip", "install", TORCH, "setuptools", "wheel"], log)
        _run([python, "-m", "pip", "install", TORCH, requirement], log)
        _run([python, "-c", f"import {module}"], log)
    (folder / name / "requirements.txt").write_text(requirements(name))


def _run(command: list[str], log) -> None:
    env = os.environ | {"GPTQMODEL_CPU_WORKERS": "2", "CUDA_VISIBLE_DEVICES": ""}
    start = log.tell()
    done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=env)
    if done.returncode:
        lines = Path(log.name).read_text(errors="replace")[start:].splitlines()
        raise InstallError(_reason(lines) or f"exit status {done.returncode}")


def _reason(lines: list[str]) -> str:
    """Return the start of pip's first error line, or else of the last line that is not empty."""
    errors = [line for line in lines if line.lstrip().startswith("ERROR")]
    spoken = [line for line in lines if line.strip()]
    return " ".join((errors or spoken[-1:] or [""])[0].split())[:200]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--only", nargs="+", choices=list(PEERS), default=list(PEERS))
    args = parser.parse_args()
    failures = 0
    for name in args.only:
        try:
            install(name, args.folder)
            print(f"{name}: ready, {peer_python(name, args.folder)}")
        except InstallError as error:
            failures += 1
            print(f"{name}: not installed: {error}")
    return failures


if __name__ == "__main__":
    sys.exit(main())

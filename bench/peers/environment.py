"""Make one virtual environment per peer, so that their pins do not meet nearplane's.

    python bench/peers/environment.py [FOLDER] [--only NAME ...]

Prints one line per peer; a second call with nothing to do takes a second. FOLDER defaults to
bench-out/peers, which git ignores; it grows to about 5 GB.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "bench-out" / "peers"

# torch is pinned on the same command line: only this version comes as a CPU build
TORCH = "torch==2.13.0"
# name -> (requirements, module that must import)
PEERS = {
    "gptqmodel": ([TORCH, "gptqmodel==7.6.0"], "gptqmodel"),
    "llmcompressor": ([TORCH, "llmcompressor==0.14.0"], "llmcompressor"),
    "autoround": ([TORCH, "auto-round==0.15.1"], "auto_round"),
    "llamacpp": (["llama-cpp-python==0.3.36", "gguf==0.19.0"], "llama_cpp"),
    "llamacpp-avx2": (["llama-cpp-python==0.3.36", "gguf==0.19.0"], "llama_cpp"),
    "onnxruntime": (["onnxruntime==1.32.0", "onnx==1.23.2"], "onnxruntime"),
}
# of the library alone
CMAKE_ARGS = (
    "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DMTMD_BUILD=OFF"
)
NATIVE = "-DGGML_NATIVE=ON"  # for this machine's processor
# what a processor with AVX2 and no AVX-512 is given
INSTRUCTION_SETS = {
    "llamacpp-avx2": "-DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_BMI2=ON"
    " -DGGML_FMA=ON -DGGML_F16C=ON"
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
    return "".join(f"{requirement}\n" for requirement in PEERS[name][0])


def install(name: str, folder: Path = FOLDER) -> None:
    """Make the environment of one peer, or leave it as it is; output goes to FOLDER/NAME.log."""
    if installed(name, folder):
        return
    wanted, module = PEERS[name]
    folder.mkdir(parents=True, exist_ok=True)
    python = str(peer_python(name, folder))
    cmake = f"{INSTRUCTION_SETS.get(name, NATIVE)} {CMAKE_ARGS}"
    with (folder / f"{name}.log").open("w") as log:
        if not Path(python).exists():
            _run([sys.executable, "-m", "venv", str(folder / name)], log)
        # torch goes first: an sdist may look for it while it builds
        first = [TORCH] if TORCH in wanted else []
        _run([python, "-m", "pip", "install", *first, "setuptools", "wheel"], log)
        # a wheel that was built for another environment is for other instruction sets
        fresh = ["--no-cache-dir"] if name in INSTRUCTION_SETS else []
        _run([python, "-m", "pip", "install", *fresh, *wanted], log, cmake)
        _run([python, "-c", f"import {module}"], log)
    (folder / name / "requirements.txt").write_text(requirements(name))


def _run(command: list[str], log, cmake: str = "") -> None:
    env = os.environ | {"GPTQMODEL_CPU_WORKERS": "2", "CUDA_VISIBLE_DEVICES": ""}
    env |= {"CMAKE_ARGS": cmake}
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

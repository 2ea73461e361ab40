"""A CPU that plays a GPU: the kernels' own source, compiled for 32 lanes on one thread."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from nearplane.codes import resident
from nearplane.kernels.gpu import versions
from nearplane.kernels.gpu.cuda import layout
from nearplane.kernels.gpu.cuda.launches import Launch
from nearplane.kernels.gpu.cuda.programs import SOURCES, Program

HERE = Path(__file__).parent
BUILT = Path(tempfile.gettempdir()) / f"nearplane-host-{os.getuid()}"
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-DNEARPLANE_HOST", "-w"]
WRONG = {
    1: "threads wait for each other for ever",
    2: "a copy to shared memory is never waited for",
    3: "a kernel writes behind its shared memory",
}


def compiler() -> str | None:
    """Return the C++ compiler of this machine, if it has one."""
    return shutil.which("g++") or shutil.which("c++")


class Host:
    """Runs launches whose tensors are in this machine's memory."""

    def __init__(self, backwards: bool = False, sources: Path = Path(str(SOURCES))):
        self.backwards = backwards
        self.sources = sources

    def run(self, launch: Launch, device: torch.device) -> None:
        function = _function(launch.program, self.sources)
        wrong = function(
            ctypes.byref(launch.args),
            launch.grid,
            launch.shared,
            launch.program.threads,
            int(self.backwards),
        )
        assert not wrong, WRONG[wrong]


def lay_out(record: torch.Tensor, rows: int, columns: int) -> tuple[str, torch.Tensor]:
    """Return what a GPU that these kernels run on would be given, in this machine's memory."""
    made = layout.pack(record, record.device)
    return (resident.RECORD, record) if made is None else (versions.CUDA, made)


# with this among its versions, `resident.lay_out` makes this machine's layers run as a GPU's
PLAYED = {"gpu": (lambda *record: True, lay_out)}


@functools.cache
def _function(program: Program, sources: Path):
    text = program.text() + '#include "simt_run.h"\n'
    files = sorted([*sources.iterdir(), *HERE.glob("*.h")])
    whole = text + "".join(file.read_text() for file in files if file.is_file())
    library = BUILT / (hashlib.sha256(whole.encode()).hexdigest()[:24] + ".so")
    if not library.exists():
        BUILT.mkdir(exist_ok=True)
        made = library.with_suffix(f".{os.getpid()}")
        command = [
            compiler(),
            *FLAGS,
            f"-I{sources}",
            f"-I{HERE}",
            "-x",
            "c++",
            "-",
            "-o",
            str(made),
        ]
        subprocess.run(command, input=text, text=True, check=True)
        made.replace(library)
    function = ctypes.CDLL(str(library)).run
    function.restype = ctypes.c_int
    return function

"""Build wheels for Linux, x86-64 and ARM, and try each: `make wheels` puts them into dist/.

They run where manylinux_2_28 says (glibc 2.28 of 2018 and libstdc++ of gcc 8, as torch's own wheels
ask for), which auditwheel checks. A wheel for x86-64 is installed into a new environment, where
every kernel multiplies; one for ARM has its library opened under qemu-user.

It needs g++, g++-aarch64-linux-gnu and qemu-user of Debian 12 or Ubuntu 22.04; newer compilers may
name symbols that older systems lack, and then it fails. `--only x86_64` or `--only aarch64`.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "nearplane" / "kernels" / "cpu" / "src"
DIST, BUILD = ROOT / "dist", ROOT / "build" / "wheels"
SYSTEM = "manylinux_2_28"
LIBRARY = "nearplane/kernels/cpu/nearplane_cpu.so"
CROSS = {
    "CMAKE_SYSTEM_NAME": "Linux",
    "CMAKE_SYSTEM_PROCESSOR": "aarch64",
    "CMAKE_CXX_COMPILER": "aarch64-linux-gnu-g++",
}
DEFINED = {"x86_64": {}, "aarch64": CROSS}
COMPILER = {"x86_64": "g++", "aarch64": "aarch64-linux-gnu-g++"}
EMULATOR = {"x86_64": [], "aarch64": ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]}


def run(*command: object, **options: object) -> str:
    """Run a command; end with what it said if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def built(processor: str) -> Path:
    """Return a wheel for a processor, with the name of the oldest systems that it runs on."""
    made = BUILD / processor
    shutil.rmtree(made, ignore_errors=True)
    defined = {"NEARPLANE_OLDER_LIBRARIES": "ON", **DEFINED[processor]}
    settings = [f"--config-settings=cmake.define.{name}={value}" for name, value in defined.items()]
    # a compiler that is missing must not make a wheel without kernels
    settings += ["--config-settings=wheel.cmake=true"]
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", made, *settings, ROOT)
    [wheel] = made.glob("*.whl")
    tag = f"{SYSTEM}_{processor}"
    run(sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", tag, wheel)
    [wheel] = made.glob("*.whl")
    return wheel


def check_system(wheel: Path, processor: str) -> None:
    """End unless auditwheel finds no symbol that the systems of the wheel's name may lack."""
    said = " ".join(run(sys.executable, "-m", "auditwheel", "show", wheel).split())
    found = re.search(r'platform tag: "manylinux_(\d+)_(\d+)_(\w+)"', said)
    asked = re.search(r"(\d+)_(\d+)", SYSTEM)
    assert asked
    if not found or found[3] != processor:
        sys.exit(f"{wheel.name}: {said}")
    if (int(found[1]), int(found[2])) > (int(asked[1]), int(asked[2])):
        sys.exit(f"{wheel.name} needs newer systems than it says: {said}")
    print(f"{wheel.name}: auditwheel says {found[0]}")


def check_library(wheel: Path, processor: str) -> None:
    """Open the library as Python does and multiply on all instruction sets that are there."""
    folder = BUILD / f"{processor}-files"
    shutil.rmtree(folder, ignore_errors=True)
    zipfile.ZipFile(wheel).extract(LIBRARY, folder)
    program = folder / "open_library"
    source = ROOT / "tests" / "kernels" / "open_library.cpp"
    options = ["-std=c++17", "-O1", "-rdynamic", f"-I{SOURCES}"]
    run(COMPILER[processor], *options, source, "-o", program, "-ldl")
    for what in ("products", "memory"):
        said = run(*EMULATOR[processor], program, folder / LIBRARY, what)
        print(f"{processor}, {what}: {', '.join(said.splitlines()[:6])}")


def check_installed(wheel: Path) -> None:
    """Install the wheel into a new environment and quantize and multiply there.

    Its dependencies are those of the environment that runs this, which takes no minutes.
    """
    made = BUILD / "environment"
    venv.create(made, clear=True, with_pip=True)
    python = made / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", wheel)
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    inside = Path(run(python, "-c", asked).strip())
    beside = [path for path in map(Path, sys.path) if path.name == "site-packages"]
    # as a path, not as a site: an editable nearplane there must not be found
    (inside / "dependencies.pth").write_text("".join(f"{path}\n" for path in beside))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = ROOT / "tests" / "kernels" / "installed_program.py"
    print(run(python, program, inside, cwd=made, env=environment), end="")
    run(made / "bin" / "nearplane", "--help", cwd=made, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=DEFINED, help="build for one processor")
    only = parser.parse_args().only
    for processor in [only] if only else DEFINED:
        wheel = built(processor)
        check_system(wheel, processor)
        check_library(wheel, processor)
        if processor == os.uname().machine:
            check_installed(wheel)
        DIST.mkdir(exist_ok=True)
        shutil.copy(wheel, DIST)
        print(f"dist/{wheel.name}: {wheel.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

"""Machine instructions of kernels compiled without a GPU: which stand in loops, how many a weight.

    python bench/sass.py        # needs triton; instructions a weight of its kernels
    python bench/sass.py --tiny

`inner_loop(cubin)` returns the instructions of a kernel's main loop, `loops(cubin)` all loops, from
nvdisasm, which is part of Triton's wheel.
"""

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

LABEL = re.compile(r"\s*(\.L_\w+):")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
JUMP = re.compile(r"\bBRA\b[^`;]*`\((\.L_\w+)\)")
PREDICATE = re.compile(r"^@!?U?P\w+\s+")
ENTRY = re.compile(r"\.section\s+\.text\.(\S+?),")
# what multiplies: of a loop without any, no product is made
PRODUCTS = (
    "FFMA",
    "FFMA2",
    "HFMA2",
    "HMMA",
    "IMMA",
    "HGMMA",
    "UTCHMMA",
    "UTCQMMA",
    "FMUL",
    "DFMA",
    "DMUL",
)


@dataclass(frozen=True)
class Loop:
    """A stretch of instructions that ends with a jump to its first."""

    first: int
    instructions: tuple[str, ...]
    nested: int  # loops inside it

    @property
    def own(self) -> Counter:
        """How many there are of each operation."""
        return Counter(operation(one) for one in self.instructions)

    @property
    def products(self) -> int:
        return sum(count for name, count in self.own.items() if name in PRODUCTS)


def operation(instruction: str) -> str:
    """Return the name before the first dot: LDG of `@P0 LDG.E.128 R4, [R2.64]`."""
    return PREDICATE.sub("", instruction).split()[0].split(".")[0]


def disassembled(cubin: bytes) -> str:
    return _run("nvdisasm", cubin, "-c")


def loops(cubin: bytes) -> list[Loop]:
    """Return every loop of every kernel in a cubin, each with the loops inside it."""
    found = []
    for text in ENTRY.split(disassembled(cubin))[2::2] or [disassembled(cubin)]:
        found += _loops(text)
    return found


def inner_loop(cubin: bytes) -> list[str]:
    """Return the instructions of the main loop.

    That is the longest of the loops that multiply and have none inside that does.
    """
    made = [loop for loop in loops(cubin) if loop.products]
    inside = [
        loop for loop in made if not any(_has(loop, other) for other in made if other is not loop)
    ]
    if not inside:
        raise ValueError("there is no loop that multiplies")
    return list(max(inside, key=lambda loop: len(loop.instructions)).instructions)


def resources(cubin: bytes) -> dict[str, int]:
    """Return what a kernel takes: REG a thread, STACK, SHARED and LOCAL bytes."""
    text = _run("cuobjdump", cubin, "-res-usage")
    return {name: int(count) for name, count in re.findall(r"\b([A-Z]+):(\d+)", text)}


def _has(outer: Loop, inner: Loop) -> bool:
    last = inner.first + len(inner.instructions)
    within = outer.first <= inner.first and last <= outer.first + len(outer.instructions)
    return within and len(inner.instructions) < len(outer.instructions)


def _loops(text: str) -> list[Loop]:
    instructions: list[str] = []
    label: dict[str, int] = {}
    for line in text.splitlines():
        if mark := LABEL.match(line):
            label[mark[1]] = len(instructions)
        if found := INSTRUCTION.search(line):
            instructions.append(found[1])
    ends: dict[int, int] = {}
    for place, instruction in enumerate(instructions):
        for target in JUMP.findall(instruction):
            first = label.get(target, place + 1)
            # a jump to itself stands behind the end of every kernel
            if first < place:
                ends[first] = max(place, ends.get(first, 0))
    spans = sorted(ends.items())
    return [
        Loop(first, tuple(instructions[first : last + 1]), _count_inside(spans, first, last))
        for first, last in spans
    ]


def _count_inside(spans: list[tuple[int, int]], first: int, last: int) -> int:
    return sum(first <= a and b <= last and (a, b) != (first, last) for a, b in spans)


def _run(tool: str, cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_tool(tool)), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _tool(name: str) -> Path:
    import triton

    found = next(Path(triton.__file__).parent.rglob(name), None)
    if found is None:
        raise FileNotFoundError(f"{name} is not in this wheel of triton")
    return found


def per_weight(bits: int, capability: int, group_size: int = 128, batch: int = 1) -> float:
    """Return instructions a weight, in lanes, of the Triton product with few rows of bfloat16.

    A turn of the loop takes one run of columns of R rows a lane (kernels/gpu/portable/few.py).
    """
    import torch
    from triton.backends.compiler import GPUTarget

    from nearplane.kernels.gpu.header import Head
    from nearplane.kernels.gpu.portable import layout as layouts
    from nearplane.kernels.gpu.portable import plan, start

    own = bits, layouts.BIAS - 2 ** (bits - 1), 1, 2000
    head = Head(layouts.KIND, 0, 0, 4096, 4096, group_size, 2, 1, 2, bits, 1, own)
    launch = plan.few(head, torch.bfloat16, batch, False, 108)
    half = torch.bfloat16
    types = {"x": half, "layout": torch.uint8, "bias": half}
    types["y"] = torch.float32 if launch.splits > 1 else half
    made = start.compiled(launch, GPUTarget("cuda", capability, 32), **types)
    shape = layouts.geometry_of(head)
    weights = launch.constants["R"] * shape.run * shape.fields * 4
    return len(inner_loop(made.asm["cubin"])) / weights


def main() -> None:
    import tiny

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capabilities", type=int, nargs="+", default=[80, 86, 89, 90, 100])
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    args = tiny.parse(parser, capabilities=[80], bits=[3])
    print("instructions a weight of the Triton product, main loop, 4096 x 4096, groups of 128")
    for capability in args.capabilities:
        counts = {bits: per_weight(bits, capability) for bits in args.bits}
        row = ", ".join(f"{bits} bits {count:.2f}" for bits, count in counts.items())
        print(f"sm_{capability}: {row}")


if __name__ == "__main__":
    main()

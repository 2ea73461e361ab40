"""Counts the instructions of the compiled loops over tiles on ARM; `make test-arm` runs it.

    arm_instructions.py OBJECT      the object file of nearplane/kernels/cpu/src/neon_dot.cpp

A loop multiplies 8 rows of 64 columns, in codes of one width, by activations in two parts: by 64
`sdot`. The most for codes of up to 5 bits is asserted.
"""

import re
import subprocess
import sys

WEIGHTS, DOTS = 512, 64
MOST = 0.45  # instructions a weight, in codes of up to 5 bits
WIDE = 2  # loops of wider codes
JUMP = re.compile(r"(?:b\.\w+|cbn?z\s+\w+,)\s+([0-9a-f]+)")
LINE = re.compile(r"^\s+([0-9a-f]+):\s+(.*)$", re.M)


def loops(disassembly: str) -> list[int]:
    """Return the instructions of every loop that has DOTS dot products."""
    found = []
    for function in disassembly.split("\n\n"):
        lines = [(int(address, 16), text) for address, text in LINE.findall(function)]
        for address, text in lines:
            jump = JUMP.match(text)
            first = int(jump[1], 16) if jump else address
            body = [other for at, other in lines if first <= at <= address]
            if sum("sdot" in other for other in body) == DOTS:
                found.append(len(body))
    return sorted(found)


def main() -> None:
    command = ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", sys.argv[1]]
    found = loops(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print("instructions a weight, by loop:", *(f"{count / WEIGHTS:.3f}" for count in found))
    assert len(found) >= 7, "fewer loops than widths: were they unrolled otherwise?"
    assert found[-WIDE - 1] <= MOST * WEIGHTS


if __name__ == "__main__":
    main()

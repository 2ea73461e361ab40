"""The source of a kernel, with the constants that are compiled into it."""

from dataclasses import dataclass
from importlib import resources

import torch

from nearplane.codes.header import COLUMN
from nearplane.kernels.gpu.cuda.sections import CHUNK, TYPES, group_of, shape_of
from nearplane.kernels.gpu.header import Head

SOURCES = resources.files("nearplane.kernels.gpu.cuda") / "src"
FLOAT32, FLOAT16, BFLOAT16, INT32 = 0, 1, 2, 3
NUMBERS = {
    torch.float32: FLOAT32,
    torch.float16: FLOAT16,
    torch.bfloat16: BFLOAT16,
    torch.int32: INT32,
}
# how many bf16 numbers add up to an activation of each type
PARTS = {torch.float32: 3, torch.float16: 2, torch.bfloat16: 1}
LADDER = 16  # step types from here on: a bf16 activation times the step is two bf16 numbers
GROUP_BLOCKS = (1, 2, 4, 8)  # groups of so many times 32 columns have an unrolled loop


@dataclass(frozen=True)
class Program:
    """The kernel in src/`name`.cu and its constants; equal programs are compiled once."""

    name: str
    threads: int
    definitions: tuple[tuple[str, int], ...]

    def text(self) -> str:
        """Return the text to compile; it includes files of `sources`."""
        lines = [f"constexpr int {name} = {value};" for name, value in self.definitions]
        if "WINDOW" in dict(self.definitions):
            lines.append("#define ENTROPY_CODED")
        return "\n".join([*lines, f'#include "{self.name}.cu"', ""])


def sources() -> dict[str, str]:
    """Return the text of every source file by name."""
    return {file.name: file.read_text() for file in SOURCES.iterdir() if "." in file.name}


def parts(head: Head, dtype: torch.dtype) -> int:
    """Return how many bf16 numbers hold one activation, times the step of its column if any."""
    if head.step_form != COLUMN:
        return PARTS[dtype]
    return 2 if dtype == torch.bfloat16 and head.step_type >= LADDER else 3


def program(
    head: Head,
    name: str,
    dtype: torch.dtype,
    threads: int,
    batch: int = 1,
    as_laid: bool = False,
) -> Program:
    """Return the program for layouts with a header like this one.

    - `name`: "product", for up to `batch` rows of activations of type `dtype`; or "weight", which
      writes the weight in `dtype`.
    - `as_laid`: see `launches.weight`.
    """
    shape = shape_of(head)
    if shape.window:
        form = {"WINDOW": shape.window, "ORDERED": shape.ordered}
    else:
        blocks = shape.wide_group // 32
        unrolled = blocks if blocks in GROUP_BLOCKS else 0
        chunks = shape.tile_columns // CHUNK
        form = {"BITS": shape.bits, "CHUNKS": chunks, "GROUP_BLOCKS": unrolled, "ORDERED": 0}
    about = {
        "TYPE": NUMBERS[dtype],
        "STEP_TYPE": TYPES.get(head.step_type, FLOAT32),
        "COLUMN_STEPS": int(head.step_form == COLUMN),
        "SPARSE": int(shape.sparse > 0),
        "THREADS": threads,
    }
    if name == "weight":
        # whether every 8 columns of the layout are 8 neighbours in the result, aligned to 16 bytes
        narrow = dtype in (torch.float16, torch.bfloat16)
        together = (as_laid or not shape.ordered) and group_of(head) == shape.wide_group
        aligned = narrow and together and head.columns % 8 == 0
        about |= {"AS_LAID": int(as_laid), "ALIGNED": int(aligned)}
    else:
        about |= {"BATCH": batch, "PARTS": parts(head, dtype)}
    return Program(name, threads, tuple((form | about).items()))

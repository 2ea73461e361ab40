"""What a product by compressed weights costs on a GPU, counted in machine code: no GPU is needed.

    .venv/bin/python bench/gpu_budget.py [--json FILE] [--listing FOLDER]
    .venv/bin/python bench/gpu_budget.py --tiny        two kernels for one GPU, fewer rows

Each row is the kernel that a layer of 4096 x 4096 gets at batch 1 (bf16 activations), compiled for
each GPU, with the layout that such a layer has:

    bits      resident: what a weight takes in memory
    inner     instructions a weight in the inner loop: the loop's instructions / its weights a lane;
              planes are unrolled, so their loop is that of a tile
    all       with what else a tile takes: its head, steps, sparse entries as often as they come
    memory, issue, shared, chain
              microseconds that a bound allows at least: reading all bytes; issuing all
              instructions (4 schedulers a multiprocessor, one instruction each a clock); shared
              memory, one wavefront a clock; and one coded integer after the other, 33 clocks each
              (AND 4, lookup 25, shift 4), in as many warps as the layer has and the GPU holds
    bf16      microseconds to read the weight in bf16, and how many times as fast the largest of the
              bounds is

--listing writes the counted loops, one instruction a line, to count them by hand.

The model leaves out: other latencies (`warps` a multiprocessor hide them), activations brought to
shared memory, tables spread in it, the sums of warps, multiprocessors that idle in the last wave,
the start of a kernel, and clocks that sink under load. Clocks and bandwidths are those of the data
sheets.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import tiny
import torch
from records import Kind, record_of
from sass import Loop, loops, resources
from torch import Tensor

from nearplane.kernels.gpu.cuda import launches, layout, nvrtc
from nearplane.kernels.gpu.cuda.sections import Shape, shape_of
from nearplane.kernels.gpu.header import read_head

ROWS, COLUMNS = 256 if tiny.ASKED else 4096, 4096
CHAIN = 33  # clocks from one integer of a stream to the next


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet; `shared`: bytes of shared memory a multiprocessor."""

    name: str
    capability: int
    multiprocessors: int
    clock: float  # boost, Hz
    bandwidth: float  # bytes/s
    shared: int
    warps: int


GPUS = [
    Gpu("A100", 80, 108, 1.41e9, 1.555e12, 164 << 10, 64),
    Gpu("A6000", 86, 84, 1.80e9, 0.768e12, 100 << 10, 48),
    Gpu("RTX 4090", 89, 128, 2.52e9, 1.008e12, 100 << 10, 48),
    Gpu("H100", 90, 132, 1.755e9, 3.35e12, 228 << 10, 64),
]


@dataclass(frozen=True)
class Count:
    """What a weight costs: instructions a lane, and wavefronts of shared memory times 32 lanes."""

    inner: float
    all: float
    wavefronts: float


@dataclass(frozen=True)
class Row:
    kernel: str
    gpu: str
    bits: float
    registers: int
    shared_bytes: int
    warps: int
    inner: float
    all: float
    memory_us: float
    issue_us: float
    shared_us: float
    chain_us: float
    bf16_us: float
    times_bf16: float


KERNELS = [
    *(Kind(method, bits) for method, bits in (("hptq", 3.1), ("hptq", 2.1), ("eclq", 3.1))),
    *(Kind("ssqr", bits, share) for share in (0.0, 0.01) for bits in (2, 3, 4)),
]


@cache
def laid_out(kernel: Kind) -> Tensor:
    torch.manual_seed(0)
    made = layout.pack(record_of(kernel, ROWS, COLUMNS), torch.device("cpu"))
    assert made is not None
    return made


def launch_of(kernel: Kind) -> launches.Launch:
    """Return the launch of a layer at batch 1."""
    made = laid_out(kernel)
    x = torch.empty(1, COLUMNS, dtype=torch.bfloat16)
    return launches.product(made, read_head(made), x, None, x)


def main_loops(cubin: bytes, coded: bool) -> tuple[Loop, Loop, list[Loop]]:
    """Return the loop of a tile, the innermost that multiplies, and those beside it.

    - `coded`: entropy-coded integers, which have a loop of their own inside a tile's.
    """
    found = [loop for loop in loops(cubin) if loop.own["HMMA"]]
    found.sort(key=lambda loop: len(loop.instructions))
    inner, tile = found[0], found[int(coded)]
    last = tile.first + len(tile.instructions)
    beside = [
        loop for loop in loops(cubin) if tile.first < loop.first < last and not loop.own["HMMA"]
    ]
    return tile, inner, beside


def sparse_turns(shape: Shape) -> float:
    """Return how often the loop over sparse entries turns: the most that any of 32 lanes has."""
    tiles = shape.tiles * (ROWS // 16)
    mean = shape.sparse / tiles / 32
    draws = np.random.default_rng(1).poisson(2 * mean, (1000, 16))
    return float(np.ceil(draws.max(1) / 2).mean()) if shape.sparse else 0.0


def count(shape: Shape, cubin: bytes) -> Count:
    """Return what a weight costs, from the machine code."""
    tile, inner, beside = main_loops(cubin, bool(shape.window))
    lane_weights = 16 * shape.tile_columns / 32  # of a tile
    turns = 1 if inner is tile else shape.tile_columns / 32
    of_beside = sum(len(loop.instructions) for loop in beside)
    # what brings a tile's bytes: one turn for 512 of them
    fetch = math.ceil(shape.tile_bytes / 512) if shape.window else 0
    often = [fetch if loop.own["LDGSTS"] else sparse_turns(shape) for loop in beside]
    once = len(tile.instructions) - of_beside - (0 if inner is tile else len(inner.instructions))
    every = once + sum(n * len(loop.instructions) for n, loop in zip(often, beside, strict=True))
    inner_weights = lane_weights / turns
    total = every + (0 if inner is tile else turns * len(inner.instructions))
    alone = len(inner.instructions) - (of_beside if inner is tile else 0)
    return Count(
        alone / inner_weights, total / lane_weights, wavefronts(inner, shape) / inner_weights
    )


def wavefronts(inner: Loop, shape: Shape) -> float:
    """Return the wavefronts of shared memory in a turn of the inner loop.

    A lookup is one: every lane has a bank. Activations are two. A refill is as many as the fullest
    bank has of the lanes that need one, whose words lie anywhere.
    """
    text = [line for line in inner.instructions if "LDS" in line]
    wide = sum("LDS.128" in line for line in text)
    if not shape.window:
        return 2.0 * wide
    refills = sum(line.startswith("@") for line in text)
    lookups = len(text) - wide - refills
    bits = 8 * shape.data_bytes / (ROWS * COLUMNS)
    need = min(1.0, bits * 16 / refills / 32)
    random = np.random.default_rng(1)
    banks = random.integers(0, 32, (2000, 32))
    banks[random.random(banks.shape) > need] = -1
    fullest = max_load(banks)
    return lookups + 2 * wide + refills * fullest


def max_load(banks: np.ndarray) -> float:
    loads = np.stack([(banks == bank).sum(1) for bank in range(32)], 1)
    return float(loads.max(1).mean())


def row(kernel: Kind, gpu: Gpu, listing: Path | None) -> Row:
    launch, made = launch_of(kernel), laid_out(kernel)
    shape, cubin = shape_of(read_head(made)), nvrtc.cubin(launch.program, gpu.capability)
    if listing:
        name = f"{kernel.label.replace(' ', '-')}_sm{gpu.capability}.txt"
        (listing / name).write_text(
            "\n".join(main_loops(cubin, bool(shape.window))[1].instructions) + "\n"
        )
    held, counted = resources(cubin), count(shape, cubin)
    weights = ROWS * COLUMNS
    block = launch.program.threads // 32
    fits = min(
        (gpu.shared) // (launch.shared + 1024),
        65536 // (held["REG"] * launch.program.threads),
        gpu.warps // block,
    )
    clocks = weights / 32 / gpu.multiprocessors / gpu.clock
    memory, bf16 = len(made) / gpu.bandwidth, 2 * weights / gpu.bandwidth
    issue, shared = counted.all / 4 * clocks, counted.wavefronts * clocks
    at_work = min(fits * block * gpu.multiprocessors, launch.grid * block)
    chain = CHAIN * weights / 32 / at_work / gpu.clock if shape.window else 0.0
    return Row(
        kernel=kernel.label,
        gpu=gpu.name,
        bits=8 * len(made) / weights,
        registers=held["REG"],
        shared_bytes=launch.shared,
        warps=fits * block,
        inner=counted.inner,
        all=counted.all,
        memory_us=1e6 * memory,
        issue_us=1e6 * issue,
        shared_us=1e6 * shared,
        chain_us=1e6 * chain,
        bf16_us=1e6 * bf16,
        times_bf16=bf16 / max(memory, issue, shared, chain),
    )


def table(rows: list[Row]) -> str:
    names = ("kernel", "gpu", "bits", "regs", "warps", "inner", "all")
    names += ("memory", "issue", "shared", "chain", "bf16", "times")
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for r in rows:
        bounds = f"{r.memory_us:.1f} | {r.issue_us:.1f} | {r.shared_us:.1f}"
        bounds += f" | {r.chain_us:.1f} | {r.bf16_us:.1f}"
        about = f"{r.kernel} | {r.gpu} | {r.bits:.2f} | {r.registers} | {r.warps}"
        lines.append(f"| {about} | {r.inner:.2f} | {r.all:.2f} | {bounds} | {r.times_bf16:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--listing", type=Path, help="write the counted loops into this folder")
    options = tiny.parse(parser)
    kernels, gpus = (KERNELS[::3], GPUS[:1]) if options.tiny else (KERNELS, GPUS)
    if options.listing:
        options.listing.mkdir(parents=True, exist_ok=True)
    rows = [row(kernel, gpu, options.listing) for kernel in kernels for gpu in gpus]
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()

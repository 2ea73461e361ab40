"""What the codes cost: bits beside the entropy, and millions of integers a second.

    .venv/bin/python bench/codes.py [--repeats 5] [--weights FILE.safetensors] [--json FILE]
    .venv/bin/python bench/codes.py --tiny

Sources are rounded Gaussians of a standard deviation, with rows and columns of equal spread or of
lognormal spread (a standard deviation of --octaves, of rows and of columns). With --weights, the
matrices of a file rounded at the step that leaves --bits of entropy. A line is one code on one
source; repeats go through all codes in turns, so that a busy minute of the machine hits all.

    above     bits an integer, all side information counted, minus the entropy of one table
    encode    10^6 integers a second: the median of the repeats (lowest .. highest)
    decode    the same

Every code is decoded and compared before it is timed. zlib compresses one byte an integer.
"""

import argparse
import json
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tiny

from nearplane import codes

SHAPES = [(192, 576), (1536, 576), (4096, 4096)]
SIGMAS = [1.05, 2.1, 4.2]  # about 2, 3 and 4 bits

Matrix = np.ndarray


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    source: str
    rows: int
    columns: int
    entropy: float
    code: str
    bits: float
    encode: list[float]
    decode: list[float]

    def line(self) -> str:
        size, above = f"{self.rows} x {self.columns}", self.bits - self.entropy
        speeds = "  ".join(spread(speed) for speed in (self.encode, self.decode))
        return (
            f"{self.source:28} {size:12} {self.entropy:7.3f}  {self.code:9} {above:+7.4f}  {speeds}"
        )


@dataclass(frozen=True)
class Coder:
    """Two functions: a matrix to bytes, and bytes and a shape to a matrix."""

    encode: Callable[[Matrix], bytes]
    decode: Callable[[bytes, tuple[int, int]], Matrix]


def coders() -> dict[str, Coder]:
    ours = {
        "huffman": codes.Huffman(),
        "rans": codes.Rans(),
        "rans, one": codes.Rans(contexts=False),
        "dense": codes.Dense(),
    }
    found = {name: Coder(code.encode, decoder(code)) for name, code in ours.items()}
    found["zlib"] = Coder(
        lambda matrix: zlib.compress(matrix.astype(np.int8)),
        lambda data, shape: np.frombuffer(zlib.decompress(data), np.int8).reshape(shape),
    )
    return found


def decoder(code: codes.Code) -> Callable[[bytes, tuple[int, int]], Matrix]:
    return lambda data, shape: code.decode(data, *shape)[0]


def gaussian(shape: tuple[int, int], sigma: float, octaves: float) -> Matrix:
    """Return rounded Gaussian numbers; spreads of 0 octaves are equal."""
    random = np.random.default_rng(0)
    row, column = (np.exp2(octaves * random.normal(size=n)).astype(np.float32) for n in shape)
    numbers = random.normal(size=shape).astype(np.float32)
    numbers *= sigma * row[:, None]
    return np.rint(numbers * column).astype(np.int32)


def entropy(matrix: Matrix) -> float:
    return codes.entropy(codes.histogram(matrix.reshape(-1))[1])


def sources(args: argparse.Namespace) -> Iterator[tuple[str, Matrix]]:
    if args.weights:
        yield from rounded_weights(args.weights, args.bits)
        return
    for shape in args.shapes:
        for sigma in args.sigmas:
            for octaves in (0.0, args.octaves):
                name = f"sigma {sigma:g}" + (f", {octaves:g} octaves" if octaves else "")
                yield name, gaussian(shape, sigma, octaves)


def rounded_weights(path: Path, bits: float) -> Iterator[tuple[str, Matrix]]:
    """Yield every matrix of the file, rounded at the step that leaves `bits` of entropy."""
    from safetensors.torch import load_file

    for name, weight in load_file(path).items():
        if weight.ndim == 2:
            numbers = weight.float().numpy()
            low, high = -24.0, 4.0  # the step, as a power of two
            for _ in range(24):
                middle = (low + high) / 2
                code = np.rint(numbers / 2**middle).astype(np.int32)
                low, high = (middle, high) if entropy(code) > bits else (low, middle)
            yield name[-28:], np.rint(numbers / 2**high).astype(np.int32)


def measure(source: str, matrix: Matrix, repeats: int, chosen: dict[str, Coder]) -> list[Row]:
    """Return one row a code; a code that does not give the matrix back is not timed."""
    data = {}
    for name, coder in chosen.items():
        if name == "zlib" and np.abs(matrix).max() > 127:
            continue
        data[name] = coder.encode(matrix)
        if not np.array_equal(coder.decode(data[name], matrix.shape), matrix):
            raise SystemExit(f"{name} does not give {source} back")
    speeds = {name: ([], []) for name in data}
    for _ in range(repeats):
        for name, stored in data.items():
            coder = chosen[name]
            encode_s, decode_s = speeds[name]
            encode_s.append(million_a_second(matrix.size, coder.encode, matrix))
            decode_s.append(million_a_second(matrix.size, coder.decode, stored, matrix.shape))
    h, shape = entropy(matrix), matrix.shape
    return [
        Row(source, *shape, h, name, 8 * len(stored) / matrix.size, *speeds[name])
        for name, stored in data.items()
    ]


def million_a_second(count: int, work: Callable[..., object], *given: object) -> float:
    started = time.perf_counter()
    work(*given)
    return count / (time.perf_counter() - started) / 1e6


def spread(speed: list[float]) -> str:
    return f"{statistics.median(speed):5.0f} ({min(speed):.0f} .. {max(speed):.0f})".ljust(20)


def shape_of(text: str) -> tuple[int, int]:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=shape_of, nargs="+", default=SHAPES, metavar="RxC")
    parser.add_argument("--sigmas", type=float, nargs="+", default=SIGMAS)
    parser.add_argument("--octaves", type=float, default=0.5)
    parser.add_argument("--weights", type=Path, help="a safetensors file of matrices")
    parser.add_argument("--bits", type=float, default=3.0, help="entropy of rounded weights")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(coders()), default=list(coders()))
    parser.add_argument("--json", type=Path)
    args = tiny.parse(parser, shapes=[(48, 64)], repeats=1)
    chosen = {name: coder for name, coder in coders().items() if name in args.only}
    head = f"{'source':28} {'size':12} entropy  {'code':9} {'above':7}"
    print(f"{head}  {'encode, 10^6/s':20}  decode, 10^6/s")
    rows = []
    for source, matrix in sources(args):
        for row in measure(source, matrix, args.repeats, chosen):
            print(row.line(), flush=True)
            rows.append(row)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()

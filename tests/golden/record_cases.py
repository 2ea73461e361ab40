"""What tests/golden/record/*.bin hold; run as a module to write files that are missing.

Cases are formulas, so that no random generator's next version can change what is expected.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from nearplane.codes import Code, Dense, Huffman, Rans, ladder, ladder_steps, record
from nearplane.codes.header import LAYOUT
from nearplane.types import Outliers

FOLDER = Path(__file__).parent / "record"


@dataclass(frozen=True)
class Case:
    """The arguments of `record.pack`."""

    code: torch.Tensor
    step: torch.Tensor
    group_size: int
    outliers: Outliers | None
    coder: Code
    row_step: torch.Tensor | None = None
    minimum: torch.Tensor | None = None

    def pack(self) -> bytes:
        parts = self.code, self.step, self.group_size, self.outliers, self.coder
        return bytes(record.pack(*parts, self.row_step, self.minimum)[0].numpy())


def bell(rows: int, columns: int, spread: int) -> torch.Tensor:
    """Return integers that look Gaussian: sums of three bytes of a multiplicative hash."""
    word = np.arange(1, rows * columns + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    word ^= word >> np.uint64(29)
    word *= np.uint64(0xBF58476D1CE4E5B9)
    total = sum((word >> np.uint64(shift)) & np.uint64(255) for shift in (40, 48, 56))
    centred = (total.astype(np.int64) - 382) * spread
    return torch.from_numpy(np.floor_divide(centred, 256).astype(np.int32)).reshape(rows, columns)


def huffman_scalar_escapes() -> Case:
    code = bell(60, 100, 5)
    code[7, 3], code[7, 4], code[59, 99] = 2**31 - 1, -(2**31), 1000
    return Case(code, torch.tensor([[0.0123]]), 100, None, Huffman())


def huffman_columns() -> Case:
    step = (torch.arange(1, 71) / 64).reshape(1, 70)
    return Case(bell(90, 70, 9), step, 70, None, Huffman())


def huffman_long_codes() -> Case:
    code = torch.cat([torch.full((1 << k,), 14 - k) for k in range(13)]).to(torch.int32)
    step = torch.tensor([[3.0e-5 * 2**-20]])
    return Case(code.reshape(1, -1), step, code.numel(), None, Huffman(15))


def dense_groups_outliers() -> Case:
    code = bell(40, 200, 3).clamp(-4, 3)
    step = -(torch.arange(1, 161).reshape(40, 4) / 1024)
    start = (torch.arange(41) // 2 * 3).to(torch.int32)
    column = torch.tensor([0, 64, 199] * 20, dtype=torch.int32)
    value = (torch.arange(60) / 8 - 3).to(torch.float16)
    return Case(code, step, 64, Outliers(start, column, value), Dense(3))


def huffman_wide_steps() -> Case:
    step = torch.tensor([[1.0e-30, 1.0e30, 0.0, -0.0, 3.0]]).to(torch.bfloat16).float()
    return Case(bell(50, 5, 4), step, 5, None, Huffman(7))


def one_symbol() -> Case:
    return Case(torch.full((50, 60), -7, dtype=torch.int32), torch.ones(50, 2), 32, None, Huffman())


def one_weight() -> Case:
    empty = torch.zeros(0, dtype=torch.int32)
    nothing = Outliers(torch.zeros(2, dtype=torch.int32), empty, empty.to(torch.float16))
    code = torch.full((1, 1), -(2**31), dtype=torch.int32)
    return Case(code, torch.tensor([[1.0]]), 1, nothing, Dense())


def rans_contexts_gaps() -> Case:
    row, column = torch.arange(96)[:, None] // 12, torch.arange(80) % 5
    code = (bell(96, 80, 3) * (1 + row) * (1 + column) // 4).to(torch.int32)
    code[7, 3], code[95, 79] = -(2**31), 2**31 - 1
    place = torch.arange(384) * 20 + torch.arange(384) * 7 % 13
    start = torch.searchsorted(place, torch.arange(97) * 80).to(torch.int32)
    value = (torch.arange(384) / 16 - 2).to(torch.float16)
    sparse = Outliers(start, (place % 80).to(torch.int32), value)
    return Case(code, torch.tensor([[0.0123]]), 80, sparse, Rans())


def rans_listed_ladder() -> Case:
    code = bell(60, 90, 6).clamp(min=-1)
    step = ladder_steps(torch.arange(1, 91) / 16)[None] * 0.75
    return Case(code, step, 90, None, Rans())


def rans_rows() -> Case:
    step = ladder_steps(torch.arange(1, 71) / 16)[None] * 0.75
    row_step = ladder_steps(torch.arange(1, 46) / 32, ladder.ROW_WIDTH)[:, None]
    return Case(bell(45, 70, 9), step, 70, None, Rans(), row_step)


def rans_rows_at() -> int:
    """Return where the factors of rows begin in `rans_rows`."""
    header = record.inspect(rans_rows().pack())
    return header.codes_at - header.row_step_bytes


def rans_rows_codes() -> int:
    return record.inspect(rans_rows().pack()).code_bytes


def dense_minima() -> Case:
    code = (bell(20, 90, 3) % 16).to(torch.int32)
    step = torch.arange(1, 61).reshape(20, 3) / 1024
    minimum = torch.arange(-7, 53).reshape(20, 3) / 128
    return Case(code, step, 32, None, Dense(4), None, minimum)


def rans_bands() -> Case:
    code = torch.div(bell(512, 800, 20), 29, rounding_mode="trunc")
    return Case(code, torch.tensor([[0.5]]), 800, None, Rans())


def rans_one_context() -> Case:
    return Case(bell(30, 70, 12), torch.full((30, 3), 0.125), 32, None, Rans(contexts=False))


CASES: tuple[Callable[[], Case], ...] = (
    huffman_scalar_escapes,
    huffman_columns,
    huffman_long_codes,
    huffman_wide_steps,
    dense_groups_outliers,
    one_symbol,
    one_weight,
    rans_contexts_gaps,
    rans_listed_ladder,
    rans_bands,
    rans_rows,
    rans_one_context,
    dense_minima,
)


def edited(case: Case, change: dict[int, int]) -> bytes:
    """Return a case's record with some bytes replaced, and the CRC made right again."""
    body = bytearray(case.pack()[:-4])
    for at, byte in change.items():
        body[at] = byte
    return bytes(body) + zlib.crc32(body).to_bytes(4, "little")


def promising(case: Case, **fields: int) -> bytes:
    """Return a case's record with other header fields, and the CRC made right again."""
    data = case.pack()
    body = replace(record.inspect(data), **fields).to_bytes() + data[LAYOUT.size : -4]
    return body + zlib.crc32(body).to_bytes(4, "little")


def bad_records() -> dict[str, bytes]:
    """Return by name what must be refused; the escaped case's codes begin at byte 36."""
    escaped, columns, dense = huffman_scalar_escapes(), huffman_columns(), dense_groups_outliers()
    good, codes = escaped.pack(), LAYOUT.size + 4
    last, huge = len(dense.pack()) - 5, dict.fromkeys(("rows", "columns", "group_size"), 2**31 - 1)
    minima = record.inspect(dense_minima().pack())
    return {
        "empty": b"",
        "truncated": good[:-1],
        "trailing": good + b"\0",
        "flipped": good[:200] + bytes([good[200] ^ 16]) + good[201:],
        "version": edited(escaped, {4: 2}),
        "code-tag": edited(escaped, {5: 77}),
        "promise-2-62-weights": promising(columns, **huge),
        "promise-code-bytes": promising(columns, rows=2**31 - 1, code_bytes=2**63),
        "step-infinite": edited(dense, {LAYOUT.size + 1: 0x7C}),
        "lengths-incomplete": edited(escaped, {codes + 24: 0xFF}),
        "one-escape-more": edited(escaped, {codes + 8: good[codes + 8] + 1}),
        "lane-width": edited(escaped, {codes + 21: 13}),
        "outlier-not-finite": edited(dense, {last: 0x7E}),
        "minimum-infinite": edited(dense_minima(), {minima.codes_at - 1: 0x7C}),
        "minima-outliers": promising(
            dense_minima(), outlier_bytes=4, code_bytes=minima.code_bytes - 4
        ),
        "minima-missing": promising(dense, step_form=4),
        "no-such-word": edited(one_symbol(), {len(one_symbol().pack()) - 9: 1}),
    }


def bad_rans_records() -> dict[str, bytes]:
    """Return by name what must be refused of rans and gaps; the codes begin at byte 36."""
    case = rans_contexts_gaps()
    good, at = case.pack(), LAYOUT.size + 4
    header = record.inspect(good)
    end = at + header.code_bytes

    def bad(change: dict[int, int]) -> bytes:
        return edited(case, change)

    classes = good[at + 3] + good[at + 4] - 1
    # after header, one size, and the lists of classes: begins, then widths
    widths = at + 15 + sum(-(-good[at + k] // 2) for k in (3, 4)) + -(-(classes - 1) // 8)
    assert good[widths] % 16 == 5
    swapped = {end - 12 + k: good[end - 12 + (k + 4) % 8] for k in range(8)}
    return {
        "rans-span-0": bad({at: 0, at + 1: 0}),
        "rans-span-2-15": bad({at: 0, at + 1: 128}),
        "rans-form": bad({at + 2: 2}),
        "rans-row-classes-33": bad({at + 3: 33}),
        "rans-column-classes-0": bad({at + 4: 0}),
        "rans-no-band": bad({at + 5: 0}),
        "rans-small-bands": bad({at + 5: 2}),
        "rans-one-escape-more": bad({at + 7: good[at + 7] + 1}),
        "rans-one-word-more": bad({at + 11: good[at + 11] + 1}),
        "rans-one-word-less": bad({at + 11: good[at + 11] - 1}),
        "rans-escape-exponent-24": bad({widths + 3: 24 | good[widths + 3] & 224}),
        "rans-first-word": bad({end - 4 * good[at + 11] - 1024 * good[at + 12]: 77}),
        "rans-last-word-0": bad(dict.fromkeys(range(end - 4, end), 0)),
        "rans-words-swapped": bad(swapped),
        "rans-last-word": bad({end - 4: good[end - 4] ^ 1}),
        "rans-promise": promising(rans_one_context(), rows=2**31 - 1),
        "gaps-width-32": bad({end + 5: 32}),
        "gaps-unary-bytes": bad({end + 6: good[end + 6] + 1}),
        "gaps-beyond": bad({end + 10: 255}),
        "ladder-base": edited(rans_listed_ladder(), {LAYOUT.size + 3: 0xFF}),
        "rows-low": edited(rans_rows(), {rans_rows_at(): 0xFF, rans_rows_at() + 1: 0x7F}),
        "rows-zero": edited(rans_rows(), {rans_rows_at(): 0x00, rans_rows_at() + 1: 0x80}),
        "rows-outliers": promising(rans_rows(), outlier_bytes=4, code_bytes=rans_rows_codes() - 4),
    }


def write_missing(name: str, data: bytes) -> None:
    path = FOLDER / f"{name}.bin"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        print("wrote", path)


if __name__ == "__main__":
    for case in CASES:
        write_missing(f"v1-{case.__name__.replace('_', '-')}", case().pack())
    for name, data in (bad_records() | bad_rans_records()).items():
        write_missing(f"must_fail/v1-{name}", data)

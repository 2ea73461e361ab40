"""Damaged records: `codes.unpack` refuses them or returns what they say, in bounded memory."""

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from random import Random

import numpy as np
import torch

from nearplane import codes
from nearplane.codes import bands, resident
from nearplane.codes.header import LAYOUT
from nearplane.codes.ladder import ROW_WIDTH
from tests.codes.draw import outliers, spread
from tests.fuzz.mutate import crc32, damaged, extreme, set_field
from tests.golden.record_cases import CASES

# what docs/formats/record.md allows a decoder that is given untrusted bytes
BYTES_AN_INTEGER, BYTES_A_BYTE, BYTES_MORE = 64, 64, 100_000_000
MEASURED = 8  # one record in so many
MOST_LAID_OUT = 2**18  # integers of a record that is put into a kernel's form, too

# offset and width of the header's fields
SIZES = ((8, 4), (12, 4), (20, 4), (24, 8))
FIELDS = ((4, 1), (5, 1), (6, 1), (7, 1), (16, 4), *SIZES)


def corpus() -> dict[str, bytes]:
    """Return records of every code, step form and kind of outliers, from one integer up."""
    found = {case.__name__: case().pack() for case in CASES}
    for code in (codes.Huffman(), codes.Dense(), codes.Rans(), codes.Rans(contexts=False)):
        for rows, columns in ((1, 1), (3, 5), (40, 33), (17, 300), (64, 128)):
            found |= _of_shape(code, rows, columns)
    return found | corpus_of_zeros()


def corpus_of_zeros(rows: int = 300) -> dict[str, bytes]:
    """Return records of as many integers a byte as a code can hold, with a step for each."""
    zeros, step = torch.zeros(rows, 200, dtype=torch.int32), torch.full((rows, 200), 0.5)
    some = (codes.Huffman(), codes.Dense(), codes.Rans())
    return {f"{code.name} zeros": _packed(zeros, step, 1, None, code) for code in some}


def _of_shape(code: codes.Code, rows: int, columns: int) -> dict[str, bytes]:
    integers = torch.from_numpy(spread(rows, rows, columns, 2.0, 1.0).clip(-200, 200))
    groups = -(-columns // 7)
    forms = {
        "matrix": (torch.tensor([[0.1]]), columns),
        "columns": (codes.round_step(torch.rand(1, columns) + 0.1), columns),
        "ladder": (codes.ladder_steps(torch.rand(columns) + 0.1)[None] * 0.75, columns),
        "rows": (codes.ladder_steps(torch.rand(columns) + 0.1)[None] * 0.75, columns),
        "groups": (codes.round_step(torch.rand(rows, groups) + 0.1), min(7, columns)),
    }
    minimum = codes.round_step(torch.rand(rows, groups) - 0.5)
    found = {
        f"{code.name} {code} {rows}x{columns} minima": _packed(
            integers, *forms["groups"], None, code, minimum=minimum
        )
    }
    for form, (step, group_size) in forms.items():
        for rate in (0.0, 0.002, 0.2) if rows > 3 else (0.0,):
            sparse = outliers(rows, rows, columns, rate) if rate else None
            name = f"{code.name} {code} {rows}x{columns} {form} {rate}"
            row_step = codes.ladder_steps(torch.rand(rows) + 0.1, ROW_WIDTH)[:, None]
            by_row = row_step if form == "rows" and not rate else None
            found[name] = _packed(integers, step, group_size, sparse, code, by_row)
    return found


def _packed(integers, step, group_size, sparse, code, row_step=None, minimum=None) -> bytes:
    parts = integers, step, group_size, sparse, code, row_step, minimum
    return bytes(codes.pack(*parts)[0].numpy())


def draw(kept: list[bytes], random: Random) -> bytes:
    """Return a damaged record; its CRC and the sizes in its header are right in most cases."""
    record = random.choice(kept)
    kind = random.randrange(8)
    if kind == 0:
        return damaged(record, random)
    body = bytearray(record[:-4])
    if kind in (1, 2):
        for _ in range(random.randint(1, 2)):
            set_field(body, *random.choice(FIELDS), random)
    elif kind == 3:
        other = random.choice(kept)
        at = random.randrange(LAYOUT.size, min(len(body), len(other)))
        body[at:] = other[at:-4]
    elif kind == 4:
        _set_inner_field_(body, random)
    else:
        body[LAYOUT.size :] = damaged(bytes(body[LAYOUT.size :]), random)
    if random.random() < 0.8:
        _fit_sizes_(body, random)
    return bytes(body) + crc32(bytes(body))


def _set_inner_field_(body: bytearray, random: Random) -> None:
    """Put an extreme number near the beginning of the steps, the codes or the outliers."""
    try:
        header = codes.inspect(bytes(body) + bytes(4))
    except codes.CorruptError:
        return
    steps_at = LAYOUT.size
    codes_at = steps_at + header.step_bytes
    places = [steps_at, codes_at, codes_at, codes_at + header.code_bytes]
    at, width = random.choice(places) + random.randrange(30), random.choice([1, 2, 4])
    if at + width <= len(body):
        set_field(body, at, width, random)


def _fit_sizes_(body: bytearray, random: Random) -> None:
    """Let the sections add up again: what was added or lost is of the codes, or of the outliers."""
    if len(body) < LAYOUT.size:
        return
    fields = list(LAYOUT.unpack(body[: LAYOUT.size]))
    rows, columns, group_size, outlier_bytes, code_bytes = fields[5:]
    try:
        probe = codes.record.Header(*fields[2:])
        sections = len(body) - LAYOUT.size - probe.step_bytes
    except (codes.CorruptError, ZeroDivisionError):
        return
    if random.random() < 0.7:
        fields[9] = sections - outlier_bytes
    else:
        fields[8] = sections - code_bytes
    if random.random() < 0.1:
        fields[5 + random.randrange(2)] = extreme(random, rows)
    try:
        body[: LAYOUT.size] = LAYOUT.pack(*fields)
    except struct.error:
        return


def check(record: bytes) -> None:
    """Raise CorruptError for a record that is refused; AssertionError for a broken promise."""
    # not of every one: tracing is slow, and loses some memory whenever it starts
    if zlib.crc32(record) % MEASURED == 0:
        _check_peak(record)
    _check_held(codes.unpack(record), record)


def _check_peak(record: bytes) -> None:
    """Assert that a record takes no more memory than the format allows, refused or not."""
    tracemalloc.start()
    try:
        codes.unpack(record)
    except codes.CorruptError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    most = _most_integers(record)
    limit = BYTES_AN_INTEGER * most + BYTES_A_BYTE * len(record) + BYTES_MORE
    assert peak <= limit, f"{peak} bytes for {most} integers in {len(record)} bytes"


def _most_integers(record: bytes) -> int:
    """Return how many integers a record promises, 0 if its header alone is refused."""
    try:
        header = codes.inspect(record)
    except codes.CorruptError:
        return 0
    return header.rows * header.columns


def _check_held(held: codes.Unpacked, record: bytes) -> None:
    """Assert that what was accepted is whole: it has its shape, and another record of it agrees."""
    header = codes.inspect(record)
    assert held.code.shape == (header.rows, header.columns) and held.code.dtype == torch.int32
    assert held.step.shape == header.step_shape and bool(held.step.isfinite().all())
    assert (held.minimum is None) == (header.minimum_count == 0)
    if held.minimum is not None:
        assert held.minimum.shape == held.step.shape and bool(held.minimum.isfinite().all())
    assert held.code.numel() <= codes.by_tag(header.code_tag).most_per_byte * header.code_bytes
    if held.code.numel() > MOST_LAID_OUT:
        return
    _check_laid_out(held, record)
    _check_again(held)


def _check_laid_out(held: codes.Unpacked, record: bytes) -> None:
    """Assert that a kernel's form of the record holds the same integers."""
    tensor = torch.frombuffer(bytearray(record), dtype=torch.uint8)
    shape = held.code.shape[0], held.code.shape[1]
    form, laid = resident.lay_out(tensor, *shape)
    assert resident.value(laid, form, *shape).shape == shape
    try:
        stored = resident.stored(laid, form, *shape)
    except ValueError:
        # of another encoder's bytes, which cannot be made again
        return
    assert torch.equal(codes.unpack(stored).code, held.code)


def _check_again(held: codes.Unpacked) -> None:
    parts = held.code, held.step, held.group_size, held.outliers, codes.Huffman(), held.row_step
    again = codes.unpack(codes.pack(*parts, held.minimum)[0])
    assert (again.minimum is None) == (held.minimum is None)
    assert held.minimum is None or torch.equal(again.minimum, held.minimum)
    assert torch.equal(again.code, held.code) and torch.equal(again.step, held.step)
    assert (again.row_step is None) == (held.row_step is None)
    assert held.row_step is None or torch.equal(again.row_step, held.row_step)
    assert (again.outliers is None) == (held.outliers is None)
    if held.outliers is not None:
        for part in ("start", "column", "value"):
            assert torch.equal(getattr(again.outliers, part), getattr(held.outliers, part))


def check_both_decoders(record: bytes) -> None:
    """Assert that the kernels' decoder of streams agrees with its reference, refusals included."""
    first, second = _decoded(codes.unpack, record), _decoded(_unpack_by_reference, record)
    assert (first is None) == (second is None), "only one of the decoders refuses this record"
    if first is not None and second is not None:
        assert np.array_equal(first, second)
    if first is None:
        raise codes.CorruptError("both refuse it")


def _decoded(unpack: Callable, record: bytes) -> np.ndarray | None:
    try:
        return unpack(record).code.numpy()
    except codes.CorruptError:
        return None


def _unpack_by_reference(record: bytes) -> codes.Unpacked:
    versions = dict(bands.decode_bands.versions)
    bands.decode_bands.versions.clear()
    try:
        return codes.unpack(record)
    finally:
        bands.decode_bands.versions.update(versions)

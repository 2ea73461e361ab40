"""What is done in parts comes to the same bits, however it is cut."""

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearplane import codes
from nearplane.codes import alphabet, contexts, fitting, huffman
from nearplane.rows import TILE, by_rows, cached_rows, in_parts, in_threads, some_rows

PIECE = 96  # integers: matrices of this file are many pieces


@contextmanager
def cut(parts: int) -> Iterator[None]:
    """Let work be done in so many parts, as far as there are grains for them."""

    def several(work, count, grain=TILE):
        grains = max(count // grain, 1)
        starts = [grains * k // parts * grain for k in range(parts)] + [count]
        pairs = zip(starts, starts[1:], strict=False)
        return [work(slice(first, stop)) for first, stop in pairs if first < stop]

    in_parts.versions["cut"] = (lambda work, count, grain=TILE: count > 0, several)
    try:
        yield
    finally:
        del in_parts.versions["cut"]


@pytest.fixture(scope="module", autouse=True)
def small_pieces():
    with pytest.MonkeyPatch.context() as patch:
        for module in (alphabet, contexts):
            patch.setattr(module, "PIECE", PIECE)
        patch.setattr(fitting, "BAND", PIECE)
        patch.setattr(huffman, "SHARED_LANES", 1)
        yield


@st.composite
def matrices(draw) -> np.ndarray:
    """Draw integers with rows of unequal spread and a few large ones."""
    rows, columns = draw(st.integers(1, 150)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    scale = np.exp2(rng.uniform(-1, 3, (rows, 1)))
    code = np.rint(rng.normal(size=(rows, columns)) * scale).astype(np.int32)
    far = draw(st.sampled_from([0, 0, 300, 50_000]))
    code.reshape(-1)[rng.integers(0, code.size, 3)] += np.int32(far)
    return code


@given(matrices(), st.integers(2, 5))
def test_codes_are_the_same_bytes(code, parts):
    coders = codes.Huffman(), codes.Rans(), codes.Rans(contexts=False)
    whole = [coder.encode(code) for coder in coders]
    with cut(parts):
        assert [coder.encode(code) for coder in coders] == whole


@given(matrices(), st.integers(2, 4))
def test_threads_write_the_same_bytes(code, threads):
    coders = codes.Huffman(), codes.Rans()
    whole = [coder.encode(code) for coder in coders], codes.fit(code).lengths
    with in_threads(threads):
        shared = [coder.encode(code) for coder in coders], codes.fit(code).lengths
    assert shared[0] == whole[0] and np.array_equal(shared[1], whole[1])


def test_threads_share_work_on_integers_and_leave_tiles_alone():
    names, caught = set(), RuntimeError("of one part")

    def work(part):
        names.add(threading.current_thread().name)
        if part.stop == 7:
            raise caught
        return (torch.arange(part.start, part.stop),)

    with in_threads(3):
        parts = in_parts(work, 10, 1)
        assert torch.cat([part for (part,) in parts]).tolist() == list(range(10))
        assert len(parts) == 3 and all(name.startswith("nearplane") for name in names)
        names.clear()
        assert len(in_parts(work, 10 * TILE)) == 1 and names == {threading.current_thread().name}
        with pytest.raises(RuntimeError) as error:
            in_parts(work, 7, 1)
        assert error.value is caught
    with in_threads(1):
        assert len(in_parts(work, 10, 1)) == 1


def test_threads_share_a_cache():
    """Rows that one thread drops are another's result all the same."""
    rows_of = cached_rows(lambda rows: torch.arange(rows.start, rows.stop), 4)
    slices = [slice(start, start + 2) for start in range(40)] * 20
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(rows_of, slices))
    assert all(
        each.tolist() == [part.start, part.start + 1]
        for each, part in zip(found, slices, strict=True)
    )


@given(matrices(), st.integers(2, 5))
def test_counts_are_the_same(code, parts):
    def found():
        span = contexts.choose_span(code)
        joint = contexts.joint_counts(code, span, split=True)
        spreads = contexts.spreads(code)
        return span, *codes.histogram(code.reshape(-1)), joint.counts, joint.contexts.row, *spreads

    whole = found()
    with cut(parts):
        assert all(map(np.array_equal, whole, found()))


@given(matrices(), st.integers(2, 5))
def test_every_size_is_counted(code, parts):
    """The sum over parts, from which the span is chosen."""
    sizes, ends = contexts._sizes(code.reshape(-1))
    assert int(sizes.sum()) == code.size and ends.tolist() == [code.min(), code.max()]
    with cut(parts):
        several = in_parts(lambda some: contexts._sizes(code.reshape(-1)[some]), code.size, 1)
    total = torch.zeros_like(sizes)
    for part, _ in several:
        total[: len(part)] += part
    assert torch.equal(total, sizes)


@given(st.integers(0, 50), st.integers(1, 60), st.integers(2, 5))
def test_rows_are_joined_in_their_order(count, grain, parts):
    values = torch.arange(count)[:, None] * torch.tensor([[1, -2]])
    for cuts in (1, parts):
        with cut(cuts):
            first, second = by_rows(lambda rows: (values[rows], values[rows, 1]), count, grain)
        assert torch.equal(first, values) and torch.equal(second, values[:, 1])


def test_rows_are_made_once():
    asked = []
    matrix = torch.arange(12).reshape(6, 2)
    rows = cached_rows(lambda some: asked.append(some) or matrix[some], 6)
    for some in (slice(0, 3), slice(0, 3), slice(0, 3, 1), slice(0, 3, 2), slice(3, 6)):
        assert torch.equal(rows(some), matrix[some])
    assert asked == [slice(0, 3), slice(0, 3, 2), slice(3, 6)]


def test_no_more_rows_are_remembered_than_a_matrix_has():
    """However a search cuts them, sweep after sweep."""
    made = []

    def part(some: slice) -> torch.Tensor:
        made.append(weakref.ref(whole := torch.arange(12).reshape(6, 2)[some].clone()))
        return whole

    rows = cached_rows(part, 6)
    for first in range(4):
        for last in range(first + 1, 7):
            rows(slice(first, last))
            assert sum(len(held) for each in made if (held := each()) is not None) <= 6
    rows(slice(0, 6))
    asked = len(made)
    rows(slice(None))
    assert len(made) == asked


def test_one_row_stands_for_all():
    matrix = torch.arange(6).reshape(3, 2)
    assert torch.equal(some_rows(matrix, slice(1, 3)), matrix[1:])
    assert torch.equal(some_rows(matrix[:1], slice(1, 3)), matrix[:1])

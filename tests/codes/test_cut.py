"""Cutting a record is slicing what it holds: the laws, for every code and form of steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane.codes import CODES, Dense, Huffman, Rans, ladder_steps, rans, record, round_base
from nearplane.codes.cut import cut, shared_group
from nearplane.codes.header import LAYOUT
from nearplane.types import Outliers
from tests.codes.draw import gaussian, outliers
from tests.codes.test_record import matrix, parts, some_steps


def packed(p) -> torch.Tensor:
    return record.pack(*p)[0]


def value_of(data: torch.Tensor) -> torch.Tensor:
    return record.unpack(data).value()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether bits are equal, signs of zeros too."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@st.composite
def ranges(draw, count: int):
    start = draw(st.integers(0, count - 1))
    return range(start, draw(st.integers(start + 1, count)))


@st.composite
def blocks(draw):
    """Return a record, and rows and columns of it."""
    p = draw(parts())
    return packed(p), draw(ranges(p[0].shape[0])), draw(ranges(p[0].shape[1]))


def sliced(dense: torch.Tensor, rows: range, columns: range) -> torch.Tensor:
    return dense[rows.start : rows.stop, columns.start : columns.stop].contiguous()


@given(blocks())
@settings(max_examples=300, deadline=None)
def test_the_value_of_a_cut_is_the_slice_of_the_value(block):
    data, rows, columns = block
    part = cut(data, rows, columns)
    assert same(value_of(part), sliced(value_of(data), rows, columns))
    assert record.inspect(part).code_tag == record.inspect(data).code_tag


@given(blocks())
@settings(max_examples=100, deadline=None)
def test_integers_steps_and_outliers_are_those_of_the_whole(block):
    data, rows, columns = block
    whole, part = record.unpack(data), record.unpack(cut(data, rows, columns))
    assert torch.equal(part.code, sliced(whole.code, rows, columns))
    assert set(part.step.flatten().tolist()) <= set(whole.step.flatten().tolist())
    apart, kept = torch.zeros_like(whole.code).float(), torch.zeros_like(part.code).float()
    for held, dense in ((whole, apart), (part, kept)):
        if held.outliers is not None:
            held.outliers.add_to_(dense)
    assert torch.equal(kept, sliced(apart, rows, columns))


@given(parts())
@settings(max_examples=100, deadline=None)
def test_cutting_everything_changes_no_byte(p):
    data = packed(p)
    rows, columns = p[0].shape
    for wanted in ((None, None), (range(rows), None), (range(rows), range(columns))):
        assert cut(data, *wanted) is data


@given(parts(), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_rows_and_columns_put_side_by_side_are_the_whole(p, shards):
    data = packed(p)
    for axis, count in enumerate(p[0].shape):
        edges = sorted({count * i // shards for i in range(shards + 1)})
        pieces = [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]
        cuts = [cut(data, x, None) if axis == 0 else cut(data, None, x) for x in pieces]
        assert same(torch.cat([value_of(c) for c in cuts], axis), value_of(data))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_cuts_of_cuts_are_cuts(data):
    whole, rows, columns = data.draw(blocks())
    inner = data.draw(ranges(len(rows))), data.draw(ranges(len(columns)))
    twice = cut(cut(whole, rows, columns), *inner)
    once = cut(whole, rows[inner[0].start : inner[0].stop], columns[inner[1].start : inner[1].stop])
    assert same(value_of(twice), value_of(once))
    # rows and columns may be cut in either order
    assert same(value_of(cut(cut(whole, None, columns), rows)), value_of(cut(whole, rows, columns)))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_cuts_of_cut_rows_are_the_same_bytes(data):
    p = data.draw(parts())
    whole, rows = packed(p), data.draw(ranges(p[0].shape[0]))
    inner = data.draw(ranges(len(rows)).filter(lambda x: len(x) < p[0].shape[0]))
    once, twice = cut(whole, rows[inner.start : inner.stop]), cut(cut(whole, rows), inner)
    # a cut of everything keeps what the first encoder wrote
    assert len(inner) == len(rows) or torch.equal(once, twice)


@given(st.integers(1, 40), st.integers(0, 200), st.integers(1, 200))
def test_borders_of_groups_stay_borders(group_size, start, count):
    columns = range(start, start + count)
    size = shared_group(columns, group_size)
    borders = {c - start for c in columns if c % group_size == 0 and c > start}
    assert borders <= {size * i for i in range(count)}
    assert 1 <= size <= count
    larger = [n for n in range(size + 1, count + 1) if borders <= {n * i for i in range(count)}]
    assert not larger


@pytest.mark.parametrize(
    ("columns", "size", "groups"),
    [
        (range(64, 192), 64, 2),
        (range(96, 192), 32, 3),
        (range(0, 100), 64, 2),
        (range(70, 90), 20, 1),
    ],
)
def test_groups_that_are_cut_in_the_middle(columns, size, groups):
    data = packed((matrix(0, 5, 256), some_steps((5, 4)), 64, None, Dense(4)))
    part = record.unpack(cut(data, columns=columns))
    assert (part.group_size, part.step.shape[1]) == (size, groups)
    assert same(value_of(cut(data, columns=columns)), sliced(value_of(data), range(5), columns))


def test_steps_keep_their_form():
    wanted = torch.exp2(torch.linspace(-2, 2, 100).double())
    ladder = ladder_steps(wanted)[None] * round_base(0.0137)
    data = packed((matrix(0, 20, 100), ladder, 100, None, Rans()))
    part = cut(data, range(3, 9), range(10, 60))
    assert record.inspect(part).step_type > 16 and record.inspect(part).step_form == 1
    assert torch.equal(record.unpack(part).step, ladder[:, 10:60])
    one = packed((matrix(0, 20, 100), torch.full((1, 1), 0.1), 100, None, Huffman()))
    assert record.inspect(cut(one, range(3, 9))).step_form == 0


def test_a_cut_of_contexts_has_contexts_of_its_own():
    code = torch.from_numpy(gaussian(0, 400 * 300, 2.0)).reshape(400, 300)
    code[::2] *= 8
    data = packed((code, some_steps((1, 300)), 300, None, Rans()))
    part = cut(data, range(100, 300))
    head = record.inspect(part)
    fields = rans.HEADER.unpack_from(bytes(part[LAYOUT.size + head.step_bytes :].numpy()))
    assert fields[2] * fields[3] > 1
    assert torch.equal(record.unpack(part).code, code[100:300])


def test_outliers_that_are_all_cut_away_leave_no_section():
    start = torch.tensor([0, 0, 2, 2], dtype=torch.int32)
    column, number = torch.tensor([1, 7], dtype=torch.int32), torch.tensor([1.5, -2.0]).half()
    data = packed(
        (matrix(0, 3, 9), some_steps((3, 3)), 4, Outliers(start, column, number), Dense())
    )
    for rows, columns in ((range(0, 1), None), (None, range(2, 7))):
        assert record.unpack(cut(data, rows, columns)).outliers is None
    kept = record.unpack(cut(data, range(1, 3), range(2, 8))).outliers
    assert kept.start.tolist() == [0, 1, 1] and kept.column.tolist() == [5]
    assert kept.value.tolist() == [-2.0]


@pytest.mark.parametrize("coder", list(CODES.values()))
def test_a_cut_is_about_as_long_as_its_share(coder):
    code, sparse = matrix(0, 256, 512).clamp(-4, 3), outliers(0, 256, 512, 0.01)
    data = packed((code, some_steps((256, 8)), 64, sparse, coder))
    halves = [cut(data, range(0, 128)), cut(data, range(128, 256))]
    assert sum(len(half) for half in halves) <= 1.02 * len(data) + 128


def test_what_is_no_part_of_the_matrix_is_refused():
    data = packed((matrix(0, 4, 6), some_steps((1, 6)), 6, None, Huffman()))
    for rows in (range(0, 5), range(2, 2), range(-1, 2), range(0, 4, 2), range(3, 1)):
        with pytest.raises(ValueError, match="no part of 4 rows"):
            cut(data, rows)
    with pytest.raises(ValueError, match="columns 3 .. 7 are no part of 6 columns"):
        cut(data, None, range(3, 7))

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearplane.codes.corrupt import CorruptError
from nearplane.codes.frequencies import TOTAL
from nearplane.codes.reader import Reader
from nearplane.codes.shapes import Shapes
from nearplane.codes.stored_tables import (
    LISTED,
    MAX_FREQUENCY,
    SHAPED,
    StoredTables,
    check_frequencies,
    read_tables,
)
from tests.codes import slow
from tests.codes.draw import laws


@st.composite
def stored(draw) -> StoredTables:
    tables, span = draw(st.integers(1, 5)), draw(st.integers(1, 30))
    begins = [0] + [1] * (tables - 1) + [0] * draw(st.integers(0, 4))
    table = np.cumsum([0, *draw(st.permutations(begins[1:]))])

    def numbers(low: int, high: int) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(low, high), min_size=tables, max_size=tables)))

    escape = numbers(0, 23)
    if draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        lengths = rng.integers(0, 256, (tables, 2 * span + 1), dtype=np.uint8)
        return StoredTables(span, table, escape, lengths)
    shapes = Shapes(numbers(0, 15), numbers(0, 300), numbers(-300, 300), numbers(-300, 300))
    return StoredTables(span, table, escape, shapes)


@given(stored())
@laws
def test_tables_come_back_and_mean_what_the_document_says(tables):
    data = tables.to_bytes()
    reader = Reader(data + b"garbage")
    back = read_tables(reader, tables.span, len(tables.table), tables.form)
    assert reader.at == len(data) and np.array_equal(back.table, tables.table)
    assert np.array_equal(back.frequencies(), tables.frequencies())
    slowly, at = slow.rans_tables(data, 0, tables.span, tables.form, len(tables.table))
    assert at == len(data)
    assert tables.frequencies()[tables.table].tolist() == slowly
    assert (tables.frequencies().sum(axis=1) == TOTAL).all() and tables.frequencies().min() >= 1


@given(stored(), st.floats(0, 1, exclude_max=True))
@laws
def test_tables_that_are_cut_short_are_refused(tables, part):
    data = tables.to_bytes()
    with pytest.raises(CorruptError):
        reader = Reader(data[: int(part * len(data))])
        read_tables(reader, tables.span, len(tables.table), tables.form)


ONE = StoredTables(
    3, np.zeros(1, np.int64), np.array([5]), Shapes(*(np.array([x]) for x in (2, 9, 1, 1)))
)


@pytest.mark.parametrize("form", [2, 255])
def test_other_forms_are_refused(form):
    with pytest.raises(CorruptError, match="form"):
        read_tables(Reader(ONE.to_bytes()), 3, 1, form)


def test_exponents_have_limits():
    large = replace(ONE, escape=np.array([24]))
    with pytest.raises(CorruptError, match=r"2\^24"):
        read_tables(Reader(large.to_bytes()), 3, 1, SHAPED)
    assert isinstance(ONE.lengths, Shapes)
    large = replace(ONE, lengths=replace(ONE.lengths, scale=np.array([16])))
    with pytest.raises(CorruptError, match="scale 16"):
        read_tables(Reader(large.to_bytes()), 3, 1, SHAPED)


def test_nearly_certain_symbols_are_refused():
    lengths = np.full((1, 7), 255, np.uint8)
    lengths[0, 3] = 0
    for escape, refused in ((0, True), (17, True), (18, False)):
        tables = replace(ONE, escape=np.array([escape]), lengths=lengths)
        frequency = tables.frequencies()
        assert (frequency.max() > MAX_FREQUENCY) == refused
        if refused:
            with pytest.raises(CorruptError, match="exceeds"):
                check_frequencies(frequency)
        else:
            check_frequencies(frequency)


def test_a_few_bytes_do_not_make_large_tables():
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError):
            read_tables(Reader(b"\xff" * 30), 2**15 - 1, 1, LISTED)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()

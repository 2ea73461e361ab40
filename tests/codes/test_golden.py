"""Old files stay readable, bad files stay refused: see tests/golden/README.md."""

import pytest
import torch

from nearplane.codes import CorruptError, record
from tests.codes import slow
from tests.golden.record_cases import CASES, FOLDER

GOOD = sorted(FOLDER.glob("*.bin"))
BAD = sorted((FOLDER / "must_fail").glob("*.bin"))


def test_every_case_has_its_file():
    assert {path.stem for path in GOOD} == {f"v1-{c.__name__.replace('_', '-')}" for c in CASES}
    assert len(BAD) >= 37
    assert all(path.stat().st_size < 10_000 for path in GOOD + BAD)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_golden_records_mean_what_they_meant(case):
    path, expected = FOLDER / f"v1-{case.__name__.replace('_', '-')}.bin", case()
    back = record.unpack(path.read_bytes())
    assert torch.equal(back.code, expected.code)
    assert back.step.numpy().tobytes() == expected.step.numpy().tobytes()
    assert back.step.shape == expected.step.shape and back.group_size == expected.group_size
    assert (back.row_step is None) == (expected.row_step is None)
    if back.row_step is not None:
        assert torch.equal(back.row_step, expected.row_step)
    assert (back.minimum is None) == (expected.minimum is None)
    if back.minimum is not None:
        assert torch.equal(back.minimum, expected.minimum)
    assert (back.outliers is None) == (expected.outliers is None)
    if back.outliers is not None:
        for name in ("start", "column", "value"):
            assert torch.equal(getattr(back.outliers, name), getattr(expected.outliers, name))


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_the_slow_decoder_reads_them_too(path):
    back = record.unpack(path.read_bytes())
    values = slow.record(path.read_bytes())
    assert (len(values), len(values[0])) == back.code.shape


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_records_are_refused(path):
    with pytest.raises(CorruptError):
        record.unpack(path.read_bytes())

"""The tests of Triton kernels, in a process in which Triton interprets them."""

from pathlib import Path

import pytest

from tests.kernels.gpu import interpreted

HERE = Path(__file__).parent
NAMES = ("test_portable.py", "test_nearest_plane.py", "test_planted_leaves.py")
FILES = [HERE / name for name in NAMES]


def check(*arguments: str) -> None:
    pytest.importorskip("triton")
    result = interpreted.run(*map(str, FILES), *arguments, timeout=1800)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert " passed" in result.stdout and "skipped" not in result.stdout, result.stdout[-2000:]


def test_kernels_where_triton_interprets():
    check("-m", "not long")


@pytest.mark.long
def test_kernels_on_more_shapes_where_triton_interprets():
    check("-m", "long")

"""The C++ decoder of rANS streams does what the reference does, to the last refusal."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane import codes
from nearplane.codes import bands
from nearplane.codes.rans import HEADER
from nearplane.kernels import cpu
from tests.codes.draw import gaussian, laws, matrices, spread

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the kernels were not built")
RANS = codes.Rans()


def decoded(data: bytes, shape: tuple[int, int], decoder) -> np.ndarray | None:
    """Return the integers, or None where the bytes are refused."""
    versions = bands.decode_bands.versions
    kept = dict(versions)
    versions.clear()
    if decoder is not None:
        versions["cpu"] = decoder
    try:
        return RANS.decode(data, *shape)[0]
    except codes.CorruptError:
        return None
    finally:
        versions.clear()
        versions.update(kept)


def assert_same(data: bytes, shape: tuple[int, int]) -> np.ndarray | None:
    fast = decoded(data, shape, bands.decode_bands.versions["cpu"])
    plain = decoded(data, shape, None)
    assert (fast is None) == (plain is None)
    assert fast is None or np.array_equal(fast, plain)
    return fast


@given(matrix=matrices().filter(np.size))
@settings(laws, max_examples=60)
def test_integers_are_those_of_the_reference(matrix):
    assert np.array_equal(assert_same(RANS.encode(matrix), matrix.shape), matrix)


@pytest.mark.parametrize("threads", [1, 3])
def test_bands_and_classes(threads):
    torch.set_num_threads(threads)
    matrix = spread(0, 700, 600, 3.0, 1.0)
    data = RANS.encode(matrix)
    _, _, rows, columns, count, _ = HEADER.unpack_from(data)
    assert min(rows, columns, count) > 1
    assert np.array_equal(assert_same(data, matrix.shape), matrix)


@given(seed=st.integers(0, 2**32 - 1), part=st.sampled_from([1.0, 1.0, 0.9, 0.5]))
@settings(laws, max_examples=150)
def test_damaged_streams_are_refused_alike(seed, part):
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(1, 40)), int(rng.integers(1, 60))
    data = bytearray(RANS.encode(gaussian(seed, shape[0] * shape[1], 2.0).reshape(shape)))
    for at in rng.integers(0, len(data), rng.integers(1, 4)):
        data[at] = rng.integers(256)
    assert_same(bytes(data[: int(part * len(data))]), shape)

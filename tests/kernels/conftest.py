"""Each test of this folder leaves the kernels and threads that it found."""

import pytest
import torch

from nearplane.kernels import cpu


@pytest.fixture(autouse=True)
def as_before():
    chosen, threads = cpu.chosen(), torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    if chosen:
        cpu.choose(chosen)


@pytest.fixture(params=cpu.available())
def isa(request) -> str:
    """Run a test once for every instruction set of this processor."""
    cpu.choose(request.param)
    return request.param

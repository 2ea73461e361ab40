"""Each test of this folder leaves the kernels and threads that it found, and times nothing."""

import pytest
import torch

from nearplane.kernels import cpu
from nearplane.kernels.cpu import linear


@pytest.fixture(autouse=True)
def as_before():
    chosen, threads = cpu.chosen(), torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    if chosen:
        cpu.choose(chosen)


@pytest.fixture(autouse=True)
def from_129_rows(monkeypatch):
    """Weights are decoded for more rows of activations than this, however fast this machine is."""
    if cpu.available():
        monkeypatch.setattr(linear, "_most_rows", lambda *_: 128)


@pytest.fixture(params=cpu.available())
def isa(request) -> str:
    """Run a test once for every instruction set of this processor."""
    cpu.choose(request.param)
    return request.param

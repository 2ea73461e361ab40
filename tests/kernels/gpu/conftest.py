"""Tests here run the CUDA kernels on this machine's CPU."""

import pytest

from nearplane.kernels.gpu.cuda import linear
from tests.kernels.gpu.host import Host, compiler


@pytest.fixture(params=[False, True], ids=["forwards", "backwards"])
def host(request, monkeypatch) -> Host:
    """A CPU that plays a GPU, its threads in one order and in the other."""
    if compiler() is None:
        pytest.skip("the kernels' source needs a C++ compiler to run on a CPU")
    machine = Host(backwards=request.param)
    monkeypatch.setitem(linear.MACHINES, "cpu", machine)
    return machine

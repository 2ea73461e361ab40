"""Mathematics takes the device of its arguments.

torch's default device is set to one that holds no numbers: what is created without a word on
where would be there, and would fit neither the arguments nor the results.
"""

import pytest
import torch

from nearplane import lattice
from nearplane.lattice import cross_target
from nearplane.methods import METHODS
from nearplane.types import QuantizedWeight
from tests.problem import problem

ROWS, COLUMNS = 70, 48
INSTANCES = {name: method() for name, method in METHODS.items() if name not in ("eclq",)}
INSTANCES |= {"eclq": METHODS["eclq"](bpw=9.0), "k-best": METHODS["eclq"](bpw=9.0, paths=3)}
INSTANCES |= {n: METHODS[n](bpw=9.0) for n in ("hptq", "hrtn", "watersic")}


def elsewhere(work, *arguments):
    """Return what `work` returns when nothing is created on the CPU by default."""
    with torch.device("meta"):
        return work(*arguments)


def equal(one, other) -> bool:
    return one.device == other.device and torch.equal(one, other)


@pytest.mark.parametrize("name", INSTANCES)
def test_methods(name):
    given = problem(0, ROWS, COLUMNS, dtype=torch.float32)
    method = INSTANCES[name]
    here: QuantizedWeight = method(given.weight, given.hessian)
    there: QuantizedWeight = elsewhere(method, given.weight, given.hessian)
    for field in ("code", "step", "record", "loss", "damped_loss"):
        assert equal(getattr(here, field), getattr(there, field)), field
    assert (here.bound is None) == (there.bound is None)
    assert equal(here.value(), elsewhere(there.value))


@pytest.mark.parametrize("name", ["natural", "activation", "min-pivot"])
def test_bases(name):
    hessian = problem(1, 4, COLUMNS).hessian
    here, there = (f(lattice.basis, hessian, name, 0.01) for f in (lambda w, *a: w(*a), elsewhere))
    assert equal(here.columns, there.columns) and equal(here.factor, there.factor)


def test_targets():
    given = problem(2, ROWS, COLUMNS)
    moments = cross_target.Moments(given.hessian, given.hessian * 0.9)

    def targets():
        choices = cross_target.choose_ridges([given.weight], moments, moments)
        return cross_target.ridge_targets([given.weight], moments, choices)

    (here,), (there,) = targets(), elsewhere(targets)
    assert equal(here, there) and not torch.equal(here, given.weight)

"""Steps of an embedding's rows by the tokens' use."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearplane import codes
from nearplane.methods import ECLQ, Target
from nearplane.walk.token_use import EXPONENT, FLOOR, prior, read, row_steps
from tests.codes.draw import laws
from tests.problem import problem


@laws
@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_used_more_means_a_finer_step(weights):
    """A rung is within a factor of 1.13 of what is wanted, and 16 rungs span a factor of 13."""
    part = torch.tensor(weights, dtype=torch.float64) + 1e-3
    part /= part.sum()
    step = row_steps(part)[:, 0].double()
    wanted = (len(part) * part + FLOOR) ** EXPONENT
    kept = wanted > wanted.max() / 12
    assert ((step / wanted)[kept].log2().abs() <= np.log2(1.13)).all()
    order = part.argsort()
    assert (step[order].diff() <= 0).all()


def test_shares_add_up():
    assert float(prior(1000).sum()) == 1 and prior(1000).diff().max() < 0
    tokens = torch.tensor([[1, 1, 2], [5, 1, 0]])
    assert read(tokens, 6).tolist() == [1 / 6, 0.5, 1 / 6, 0, 0, 1 / 6]


def test_rounding_with_steps_of_rows_is_rounding_scaled_rows():
    """And the certificate holds: a row's loss grows with the square of its factor."""
    p = problem(7, 96, 128, dtype=torch.float32)
    method = ECLQ(3.5)
    basis = method.basis(p.hessian)
    row_step = codes.ladder_steps(torch.linspace(0.25, 2, 96), 4)[:, None]
    found = method.quantize_towards(p.weight, basis, Target(p.weight, {}, row_step))
    plain = method.quantize(p.weight / row_step, basis)
    # the factors take 2 + 48 bytes of the rate
    assert found.step[0, 0] > plain.step[0, 0] and found.bpw <= 3.5
    held = codes.unpack(found.record)
    assert torch.equal(held.row_step, row_step) and torch.equal(held.code, found.code)
    assert not found.void and (found.damped_loss <= found.bound).all()
    error = (p.weight - found.value()).double()
    loss = ((error @ p.hessian.double()) * error).sum(1)
    assert torch.allclose(found.loss, loss, rtol=1e-4)
    first, last = found.damped_loss[:24].mean(), found.damped_loss[-24:].mean()
    ratio = float((row_step[-24:] ** 2).mean() / (row_step[:24] ** 2).mean())
    assert 0.5 * ratio < float(last / first) < 2 * ratio

"""What every method promises, whatever it does: each class in METHODS passes through this file.

A new method needs no line here. `examples` makes instances from its fields alone.
"""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane import codes
from nearplane.lattice import NotPositiveDefiniteError
from nearplane.methods import METHODS, OutOfRangeError, RateError, from_recipe
from nearplane.types import NearplaneError
from tests.lattice import plain
from tests.problem import problem

BPW = (1.5, 2.125, 3.125, 4.5, 6.0)
MANY_VALUES = {"order": ("natural", "activation", "min-pivot"), "gain": (True, False)}
MANY_VALUES |= {"per": ("row", "matrix")}


def fields(method) -> set[str]:
    return {field.name for field in dataclasses.fields(method)}


ENTROPY_CODED = [m for m in METHODS.values() if "bpw" in fields(m)]
FIXED_WIDTH = [m for m in METHODS.values() if "bits" in fields(m)]
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def small(method, **chosen):
    """Return an instance for small matrices, whose headers would not fit into 3 bits a weight."""
    usual = {"bpw": 9.0, "bits": 3, "group_size": 32} | chosen
    return method(**{k: v for k, v in usual.items() if k in fields(method)})


def examples(method):
    """Yield an instance for every value of every field with few values."""
    yield small(method)
    for name, values in MANY_VALUES.items():
        if name in fields(method):
            yield from (small(method, **{name: value}) for value in values)
    if "bits" in fields(method):
        yield small(method, bits=2, group_size=1000)
        yield small(method, bits=8, group_size=1)


INSTANCES = [instance for method in METHODS.values() for instance in examples(method)]
every_instance = pytest.mark.parametrize("instance", INSTANCES, ids=str)


def added(hessian, damping: float) -> torch.Tensor:
    """Return the damped Hessian, written once more."""
    return hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian)).double()


def check(instance, weight, hessian, quantized=None):
    """Assert what holds for every result; returns it."""
    w = instance(weight, hessian) if quantized is None else quantized
    exact = weight.double()
    assert w.code.shape == weight.shape and w.code.dtype == torch.int32
    check_value(w, weight)
    check_record(w)
    check_losses(w, exact, hessian.double())
    check_certificate(w)
    assert all(math.isfinite(fact) for fact in w.facts.values())
    if hasattr(instance, "bpw"):
        assert rate(w) <= instance.bpw
    return w


def rate(w) -> float:
    """Return bits per weight with the record's directory entry counted."""
    return 8 * (len(w.record) + codes.ENTRY_BYTES) / w.code.numel()


def relative_loss(w, weight, hessian) -> float:
    energy = plain.loss(0 * weight.double().numpy(), weight.double().numpy(), hessian.numpy())
    return float(w.loss.sum() / energy.sum())


def check_value(w, weight):
    """value = step · code − minimum + outliers, one weight at a time."""
    value = w.value()
    assert value.shape == weight.shape and value.isfinite().all()
    rows, columns = w.code.shape
    group = torch.arange(columns) // w.group_size if w.step.shape[1] != columns else None
    step = w.step if group is None else w.step[:, group]
    expected = step.double().expand(rows, columns) * w.code
    if w.minimum is not None:
        expected -= w.minimum.double()[:, torch.arange(columns) // w.group_size]
    if w.outliers is not None:
        start = w.outliers.start.tolist()
        assert start[0] == 0 and start[-1] == len(w.outliers.value) == len(w.outliers.column)
        for row in range(rows):
            mine = slice(start[row], start[row + 1])
            expected[row, w.outliers.column[mine].long()] += w.outliers.value[mine].double()
    # two float32 roundings
    assert torch.allclose(value.double(), expected, rtol=2e-7, atol=1e-37)


def check_record(w):
    """The record alone gives everything back, and bpw counts all of it."""
    rows, columns = w.code.shape
    back = codes.unpack(w.record, rows, columns)
    assert torch.equal(back.code, w.code)
    assert torch.equal(back.step, w.step) and back.step.shape == w.step.shape
    assert back.group_size == w.group_size
    kept = w.outliers is not None and len(w.outliers.value) > 0
    if back.outliers is not None or kept:
        for name in ("start", "column", "value"):
            assert torch.equal(getattr(back.outliers, name), getattr(w.outliers, name))
    assert torch.equal(back.value(), w.value())
    assert w.bpw == 8 * len(w.record) / w.code.numel()
    assert w.code_bpw == 8 * w.code_bytes / w.code.numel() < w.bpw


def check_losses(w, weight, hessian):
    """Losses again, in float64 from the stored value.

    `loss` comes of a difference of two sums, so it errs by some eps of the damped one; values may
    be rounded to float32 once more or less, which moves an error by 2^-23 of the value.
    """
    value = w.value().double()
    damped = torch.from_numpy(
        plain.loss(weight.numpy(), value.numpy(), added(hessian, w.facts["damping"]).numpy())
    )
    loss = torch.from_numpy(plain.loss(weight.numpy(), value.numpy(), hessian.numpy()))
    ulp = 2.0**-23 * torch.from_numpy(
        plain.loss(0 * weight.numpy(), weight.abs().numpy(), hessian.abs().numpy())
    )
    # (e + δ) H (e + δ) ≤ (√eHe + √δHδ)²
    slack = 2 * 2.0**-11.5 * (ulp * damped).sqrt() + 2.0**-23 * ulp + 1e-10 * damped
    assert ((w.damped_loss - damped).abs() <= slack).all()
    assert ((w.loss - loss).abs() <= slack).all()
    assert (w.damped_loss >= w.loss).all() and (w.loss >= 0).all()


def check_certificate(w):
    whole = w.bound is not None and not w.bound.isnan().any()
    assert (w.void == "") == whole
    assert "\n" not in w.void
    if w.bound is not None:
        stands = ~w.bound.isnan()
        assert stands.any()
        assert (w.damped_loss[stands] <= w.bound[stands] * (1 + 1e-6)).all()


@every_instance
def test_contract(instance):
    p = problem(1, 48, 129, dead=3, dtype=torch.float32)
    w = check(instance, p.weight, p.hessian)
    # 2 bits with one step a row are the coarsest of the examples
    assert relative_loss(w, p.weight, p.hessian) < 0.5


@every_method
@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 200), (200, 1), (3, 63), (100, 100)])
def test_odd_shapes(method, rows, columns):
    p = problem(2, rows, columns, dtype=torch.float32)
    for chosen in ({}, {"group_size": 7}, {"group_size": 64}):
        try:
            check(small(method, bpw=12.0, **chosen), p.weight, p.hessian)
        except RateError as error:
            # only a matrix whose header alone exceeds its bits may be refused
            assert "bpw" in fields(method) and rows * columns <= 200
            assert "the nearest that can is" in str(error)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_any_method_on_any_problem(data):
    instance = data.draw(st.sampled_from(INSTANCES))
    rows, n = data.draw(st.integers(20, 60)), data.draw(st.integers(30, 140))
    tokens, dead = data.draw(st.sampled_from([5, n, 3 * n])), data.draw(st.integers(0, n // 3))
    p = problem(data.draw(st.integers(0, 10**6)), rows, n, tokens=tokens, dead=dead)
    check(instance, p.weight, p.hessian)


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_type_of_weight(method, dtype):
    p = problem(3, 40, 100)
    weight, hessian = p.weight.to(dtype), p.hessian.float()
    kept = weight.clone(), hessian.clone()
    check(small(method), weight, hessian)
    assert torch.equal(weight, kept[0]) and torch.equal(hessian, kept[1])


@every_method
def test_same_input_same_bytes(method):
    p = problem(4, 40, 100, dtype=torch.float32)
    first, second = (small(method)(p.weight, p.hessian) for _ in range(2))
    assert torch.equal(first.record, second.record)
    loose = p.weight.T.contiguous().T
    assert torch.equal(first.record, small(method)(loose, p.hessian).record)


@every_method
def test_a_shared_basis_gives_the_same_bytes(method):
    p = problem(5, 40, 100, dtype=torch.float32)
    instance = small(method)
    shared = instance(p.weight, instance.basis(p.hessian))
    assert torch.equal(shared.record, instance(p.weight, p.hessian).record)


@every_method
def test_all_zero_weight(method):
    p = problem(6, 40, 100)
    w = check(small(method), torch.zeros(40, 100), p.hessian)
    assert not w.value().any() and not w.loss.any()


@every_method
def test_zero_rows_and_columns(method):
    p = problem(7, 40, 100, dtype=torch.float32)
    p.weight[3] = 0
    p.weight[:, 10:50] = 0
    check(small(method), p.weight, p.hessian)


@every_method
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e4, 1e8, 1e20])
def test_weights_of_any_size(method, scale):
    """Steps round to 16 bits differently, and so the loss moves a little; it cannot move much."""
    p = problem(8, 40, 100, dtype=torch.float32)
    usual = relative_loss(small(method)(p.weight, p.hessian), p.weight, p.hessian)
    w = check(small(method), p.weight * scale, p.hessian)
    # outliers are float16: beyond 65504 the steps have to be as coarse as it takes
    if scale <= 1e4 or "outliers" not in fields(method):
        assert relative_loss(w, p.weight * scale, p.hessian) < 1.2 * usual


@every_method
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_inputs_of_any_size(method, scale):
    p = problem(9, 40, 100, dtype=torch.float32)
    usual = relative_loss(small(method)(p.weight, p.hessian), p.weight, p.hessian)
    w = check(small(method), p.weight, p.hessian * scale)
    assert relative_loss(w, p.weight, p.hessian * scale) < 1.2 * usual


@every_method
@pytest.mark.parametrize("size", [1e-36, 1e-39, 1e-42, 1e-45, 0.0])
@pytest.mark.parametrize("where", [(5,), (slice(None), slice(16, 48)), (slice(None),)])
def test_tiny_denormal_and_zero_weights(method, size, where):
    """In a row, in groups of columns, everywhere; other rows are as good as before."""
    p = problem(9, 24, 64, dtype=torch.float32)
    p.weight[where] *= size
    w = check(small(method), p.weight, p.hessian)
    assert w.value().isfinite().all() and w.step.isfinite().all()


@every_method
@pytest.mark.parametrize("size", [50.0, 1e4, 1e6])
def test_one_huge_weight(method, size):
    p = problem(10, 40, 100, dtype=torch.float32)
    p.weight[5, 7] = size
    check(small(method), p.weight, p.hessian)


@every_method
@pytest.mark.parametrize("kind", ["signs", "one of them", "a tenth of them"])
def test_weights_of_few_values(method, kind):
    """Their entropy stays under any target: the step must not fall until integers overflow."""
    p = problem(18, 40, 100, dtype=torch.float32)
    weight = p.weight.sign()
    if kind != "signs":
        share = 1 / weight.numel() if kind == "one of them" else 0.1
        keep = torch.arange(weight.numel()).reshape(weight.shape) % round(1 / share) == 0
        weight = weight * keep
    w = check(small(method), weight, p.hessian)
    assert relative_loss(w, weight, p.hessian) < 0.5


@every_method
def test_most_columns_dead(method):
    p = problem(11, 40, 100, dead=95, dtype=torch.float32)
    assert int((p.hessian.diagonal() == 0).sum()) == 95
    check(small(method), p.weight, p.hessian)


@pytest.mark.parametrize("bpw", BPW)
@pytest.mark.parametrize("method", ENTROPY_CODED, ids=lambda m: m.name)
def test_target_is_met_from_below(method, bpw):
    """With the directory entry counted, a matrix of realistic size ends within 0.01 bits."""
    p = problem(12, 256, 512, dtype=torch.float32, condition=100)
    w = check(method(bpw=bpw), p.weight, p.hessian)
    assert bpw - 0.01 <= rate(w) <= bpw


@pytest.mark.parametrize("method", ENTROPY_CODED, ids=lambda m: m.name)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), bpw=st.floats(2.5, 10))
def test_target_is_never_exceeded(method, seed, bpw):
    """On small matrices the rate is a coarse function of the step: only the limit is sure."""
    rows, n = 40 + seed % 50, 100 + seed % 31
    p = problem(seed, rows, n, dtype=torch.float32)
    w = method(bpw=bpw)(p.weight, p.hessian)
    assert rate(w) <= bpw
    # and the target is used
    assert rate(w) >= bpw - 0.1


@pytest.mark.parametrize("method", ENTROPY_CODED, ids=lambda m: m.name)
def test_impossible_target_names_the_nearest_that_can(method):
    p = problem(13, 8, 16, dtype=torch.float32)
    with pytest.raises(RateError, match="3.125 bits per weight cannot be met .* 8 x 16") as caught:
        method(bpw=3.125)(p.weight, p.hessian)
    nearest = float(str(caught.value).rsplit(" ", 1)[1])
    if nearest <= 12:
        check(method(bpw=nearest), p.weight, p.hessian)
    one_sentence(caught.value)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("method", FIXED_WIDTH, ids=lambda m: m.name)
def test_codes_fit_their_bits(method, bits):
    p = problem(14, 30, 100, dtype=torch.float32)
    w = check(small(method, bits=bits), p.weight, p.hessian)
    assert -(2 ** (bits - 1)) <= w.code.min() and w.code.max() < 2 ** (bits - 1)
    # the code's own header may cost a few bytes
    assert 30 * 100 * bits / 8 <= w.code_bytes <= 30 * 100 * bits / 8 + 16


def one_sentence(error):
    message = str(error)
    assert message and "\n" not in message and len(message) < 300


@every_method
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(method, bad):
    p = problem(15, 40, 100, dtype=torch.float32)
    p.weight[3, 4] = bad
    with pytest.raises(NearplaneError, match="NaN or infinite") as caught:
        small(method)(p.weight, p.hessian)
    one_sentence(caught.value)


@every_method
def test_shapes_that_do_not_fit(method):
    p = problem(16, 40, 100, dtype=torch.float32)
    with pytest.raises(NearplaneError, match="40, 99.* 100 columns") as caught:
        small(method)(p.weight[:, :99], p.hessian)
    one_sentence(caught.value)


@every_method
def test_hessians_that_are_no_basis(method):
    p = problem(17, 40, 100, dtype=torch.float32)
    for hessian in (p.hessian * math.nan, -p.hessian, torch.zeros(100, 100)):
        with pytest.raises(NotPositiveDefiniteError) as caught:
            small(method)(p.weight, hessian)
        one_sentence(caught.value)


BAD = {"bits": (1, 9, 0), "group_size": (0, -1), "bpw": (0.5, 13.0, math.nan)}
BAD |= {"order": ("", "best"), "damping": (-0.1, math.nan), "outliers": (-0.1, 0.9)}
BAD |= {"per": ("column",)}


@every_method
def test_hyper_parameters_out_of_range(method):
    for name in BAD.keys() & fields(method):
        for value in BAD[name]:
            with pytest.raises(OutOfRangeError, match=name) as caught:
                method(**{name: value})
            one_sentence(caught.value)
            recipe = method().recipe() | {name: value}
            with pytest.raises(NearplaneError):
                from_recipe(recipe)


@every_instance
def test_recipe_leads_back(instance):
    recipe = json.loads(json.dumps(instance.recipe()))
    assert from_recipe(recipe) == instance
    assert recipe["method"] == type(instance).name == type(instance).__name__.lower()


@every_method
def test_recipes_that_lead_nowhere(method):
    with pytest.raises(NearplaneError, match="does not take these options"):
        from_recipe(method().recipe() | {"colour": "red"})
    with pytest.raises(NearplaneError, match="no method is called 'best'"):
        from_recipe({"method": "best"})
    with pytest.raises(NearplaneError, match="no method is called None"):
        from_recipe({})


@every_method
def test_a_method_is_frozen_and_hashable(method):
    instance = method()
    assert instance == method() and hash(instance) == hash(method())
    name = dataclasses.fields(method)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(instance, name, 4)
    assert method.__doc__ and method.name in METHODS

"""Layouts in codes of fixed width: what they hold, and products with activations as integers."""

import math

import pytest
import torch
from torch import Tensor

import nearplane as npl
from nearplane import codes
from nearplane.codes import resident
from nearplane.export.linear import CompressedLinear
from nearplane.kernels import cpu
from nearplane.kernels.cpu import choice, layout
from nearplane.methods import ECLQ
from nearplane.types import NearplaneError
from tests.kernels import forms
from tests.kernels.forms import Case, laid_out
from tests.kernels.test_cpu import METHOD_RESULTS, activations, result

LARGEST = {15: 16256, 8: 127}  # of an activation as an integer of so many bits
WORDS = {15: "auto", 8: "int8"}
every_bits = pytest.mark.parametrize("bits", LARGEST)
TILE = 256  # places whose activations share a scale
# steps for every row and group of columns need groups of whole chunks of 64
SERVED = [name for name in forms.FORMS if "groups" not in name and "a step a row" not in name]
every_form = pytest.mark.parametrize("form", SERVED)
TYPES = (torch.float32, torch.float16, torch.bfloat16)


def fast(record: Tensor, bits: int = 15) -> Case:
    with resident.wanting("fast", WORDS[bits]):
        made = laid_out(record)
    assert made.head.planes == made.head.segments == 0
    return made


def fast_form(form: str, bits: int = 15) -> Case:
    return fast(forms.FORMS[form](), bits)


def limit_of(made: Case, x: Tensor, bits: int = 15) -> Tensor:
    """Return how far a product of float32 may be off: half a unit of every activation.

    A unit is at most the largest |activation · column step| over LARGEST; integers are exact, but
    for float32 sums of the tiles. The rest is what tests/kernels/accuracy.py grants.
    """
    coded = made.size.abs()
    # the largest |x_c step_c| of a row, in units of what multiplies a code there
    step = made.step.abs().expand_as(coded)
    largest = (x.double().abs()[:, None] * step).amax(-1)
    integers = (coded / step.clamp_min(1e-300)).sum(-1)
    floats = (
        2.0**-24 * math.sqrt(made.additions) * 6 * (x.double().square() @ coded.square().T).sqrt()
    )
    return 1.01 * largest * integers / LARGEST[bits] / 2 + floats + 1e-12


@every_form
def test_a_layout_has_the_value_and_gives_the_record_back(form, isa):
    made = fast_form(form)
    assert torch.equal(made.value().double(), made.weight)
    assert torch.equal(made.stored(), made.record)
    index = torch.tensor([149, 0, 17, 3, 17])
    assert torch.equal(made.value_rows(index), made.value()[index])


@every_bits
@every_form
def test_products_are_those_of_the_value(form, bits, isa):
    made = fast_form(form, bits)
    for batch in (1, 2, 5, 9):
        x = activations(batch, made.columns, torch.float32)
        y, exact = made.product(x).double(), x.double() @ made.weight.T
        assert ((y - exact).abs() <= limit_of(made, x, bits)).all()


@pytest.mark.parametrize("name", METHOD_RESULTS)
def test_what_methods_write_comes_back_or_is_laid_out_compactly(name, isa):
    """Groups of 32 are not served: then the compact layout takes their place."""
    with resident.wanting("fast"):
        made = laid_out(result(name).record)
    assert torch.equal(made.value().double(), made.weight)
    assert torch.equal(made.stored(), made.record)
    x = activations(3, made.columns, torch.float32)
    off = (made.product(x).double() - x.double() @ made.weight.T).norm()
    assert off <= 1e-3 * (x.double() @ made.weight.T).norm()


def grouped(size: int, bits: int) -> Tensor:
    draws = torch.Generator().manual_seed(bits)
    code = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (50, 320), generator=draws)
    step = torch.rand(50, -(-320 // size), generator=draws).half().float() + 0.5
    return codes.pack(code.int(), step, size, None, codes.Dense(bits))[0]


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("size", [64, 128, 192])
def test_steps_of_groups(size, bits, isa):
    made = fast(grouped(size, bits))
    assert torch.equal(made.value().double(), made.weight)
    assert torch.equal(made.stored(), made.record)
    for batch in (1, 5):
        x = activations(batch, 320, torch.float32)
        y, exact = made.product(x).double(), x.double() @ made.weight.T
        # a unit of activations in a tile is the largest of them over LARGEST
        apart = x.double().abs().amax(1, keepdim=True) * made.size.sum(1) / LARGEST[15] / 2
        assert ((y - exact).abs() <= 1.01 * apart + 1e-5 * exact.abs().max()).all()


@every_bits
@pytest.mark.parametrize("width", [2, 3, 6])
@pytest.mark.parametrize("dtype", TYPES)
def test_instruction_sets_agree_to_the_last_bit(width, dtype, bits):
    """Sums of a tile are of integers, and tiles are added up in one order; there is no escape."""
    made = fast(grouped(64, width), bits)
    for batch in (1, 7):
        x, results = activations(batch, 320, dtype), []
        for name in cpu.available():
            cpu.choose(name)
            results.append(made.product(x))
        assert all(torch.equal(y, results[0]) for y in results)


@pytest.mark.parametrize("size", [32, 96])
def test_groups_that_chunks_do_not_divide_stay_compact(size):
    with resident.wanting("fast"):
        assert laid_out(grouped(size, 4)).head.planes


@pytest.mark.parametrize("levels", [1, 2, 3, 5, 6, 8, 9, 14, 30, 60, 120])
@pytest.mark.parametrize("columns", [64, 130, 256, 300])
def test_codes_of_every_form(levels, columns, isa):
    """As many integers as each form holds, in tiles of every length."""
    draws = torch.Generator().manual_seed(levels)
    code = (torch.randint(0, levels, (33, columns), generator=draws) - levels // 2).int()
    made = fast(codes.pack(code, torch.tensor([[0.25]]), columns, None, codes.Huffman())[0])
    assert torch.equal(made.value(), 0.25 * code)
    x = torch.randint(-99, 100, (3, columns), generator=draws).float()
    off = made.product(x).double() - x.double() @ made.weight.T
    assert (off.abs() <= 1.01 * 99 / LARGEST[15] / 2 * made.size.sum(1) + 1e-4).all()


@every_bits
@pytest.mark.parametrize("what", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_seen(what, bits, isa):
    made = fast_form("rans, columns on a ladder", bits)
    x = activations(2, made.columns, torch.float32)
    x[1, 7] = what
    y = made.product(x)
    assert y[0].isfinite().all() and not y[1].isfinite().any()


def test_activations_of_zero_and_of_denormal_numbers(isa):
    made = fast_form("rans, columns on a ladder")
    for size in (0.0, 1e-42):
        assert made.product(torch.full((1, made.columns), size)).abs().max() <= 1e-36


@pytest.mark.parametrize("heavy", [False, True])
def test_the_error_is_below_that_of_bf16_activations(heavy, isa):
    """With Gaussian activations by ten times, with heavy tails by three."""
    made = fast_form("rans, columns on a ladder")
    x = activations(16, made.columns, torch.float32)
    if heavy:
        x = x * torch.exp(2 * activations(1, made.columns, torch.float32))
    exact = x.double() @ made.weight.T
    off = (made.product(x).double() - exact).norm()
    rounded = (x.bfloat16().double() @ made.weight.T - exact).norm()
    assert off * (3 if heavy else 10) < rounded


@pytest.mark.parametrize("heavy", [False, True])
def test_the_error_of_8_bits(heavy, isa):
    """Against that of bf16 activations: about 1.5 · largest / rms of the scaled activations.

    Where these are m and r, a unit is m / 127, and rounding is off by 1 / √12 of it; bf16 by about
    r · 2⁻⁷ / 1.5 / √12. So 5 times for Gaussian activations, 12 with these heavy tails.
    """
    made = fast_form("rans, columns on a ladder", 8)
    x = activations(16, made.columns, torch.float32)
    if heavy:
        x = x * torch.exp(2 * activations(1, made.columns, torch.float32))
    scaled = x.double() * made.step
    largest = scaled.abs().amax(1) / scaled.square().mean(1).sqrt()
    exact = x.double() @ made.weight.T
    off = (made.product(x).double() - exact).norm()
    rounded = (x.bfloat16().double() @ made.weight.T - exact).norm()
    assert rounded < off < 2 * largest.max() * rounded


@pytest.mark.parametrize("bits", [8, 15])
def test_rows_of_integers_have_their_bits(bits):
    """Activations on a grid of so many bits are multiplied without any error."""
    draws, most = torch.Generator().manual_seed(0), LARGEST[bits]
    made = fast(grouped(64, 4), bits)
    x = torch.randint(-most, most + 1, (2, 320), generator=draws).float()
    x[:, ::64] = most
    y, exact = made.product(x).double(), x.double() @ made.weight.T
    assert ((y - exact).abs() <= 2.0**-20 * (x.abs().double() @ made.weight.T.abs())).all()


def test_words_that_contradict_each_other_are_refused(tmp_path):
    for words in (("fast", "exact"), ("compact", "int8"), ("auto", "int4")):
        with pytest.raises(NearplaneError, match="exact|fast form|must be one of"):
            npl.load(tmp_path, resident=words[0], activations=words[1])
    record = forms.FORMS["rans, columns on a ladder"]()
    with resident.wanting("auto", "exact"):
        assert not choice.prefers_fast(record, 1 << 20)


def test_what_is_asked_for_is_laid_out():
    record = forms.FORMS["rans, columns on a ladder"]()
    for form, tiles in (("compact", False), ("fast", True)):
        with resident.wanting(form):
            made = CompressedLinear(forms.COLUMNS, forms.ROWS, record)
            made.lay_out()
        assert (layout.read_header(made.laid).segments == 0) == tiles
    with pytest.raises(ValueError, match="auto, compact, fast"), resident.wanting("faster"):
        pass


def test_auto_is_compact_for_small_layers_and_little_memory(monkeypatch):
    record = forms.FORMS["rans, columns on a ladder"]()
    monkeypatch.setattr(choice, "fast_is_faster", lambda *_: True)
    weights = choice.LEAST_WEIGHTS
    assert not choice.prefers_fast(record, weights - 1) and choice.prefers_fast(record, weights)
    monkeypatch.setattr(choice, "available_bytes", lambda: 8.0 * len(record) - 1)
    assert not choice.prefers_fast(record, weights)
    monkeypatch.setattr(choice, "available_bytes", lambda: math.inf)
    monkeypatch.setattr(choice, "fast_is_faster", lambda *_: False)
    assert not choice.prefers_fast(record, weights)


def test_what_this_processor_is_faster_at_is_measured(isa):
    assert choice.fast_is_faster(cpu.chosen(), torch.get_num_threads()) in (True, False)


def test_load_takes_a_word_that_it_knows(tmp_path):
    with pytest.raises(NearplaneError, match="resident must be one of auto, compact, fast"):
        npl.load(tmp_path, resident="quick")


def test_rows_with_factors(isa):
    draws = torch.Generator().manual_seed(3)
    weight = torch.randn(96, 192, generator=draws)
    x = torch.randn(400, 192, generator=draws)
    outputs = torch.randn(96, 200, generator=draws) * torch.exp(torch.randn(96, 1, generator=draws))
    target = npl.methods.Target(weight, output_hessian=[outputs @ outputs.T])
    method = ECLQ(3.5)
    found = method.quantize_towards(weight, method.basis(x.T @ x / 400), target)
    made = fast(found.record)
    assert made.head.row_palette and torch.equal(made.value().double(), made.weight)
    off = (made.product(x[:5]).double() - x[:5].double() @ made.weight.T).norm()
    assert off < 1e-3 * (x[:5].double() @ made.weight.T).norm()

"""The divergence is Σ p log(p / q) of exactly the tokens that the perplexity scores."""

import math

import pytest
import torch
from transformers import LlamaForCausalLM

from nearplane.evaluate import divergence as module
from nearplane.evaluate import perplexity as perplexity_module
from nearplane.evaluate.divergence import decimal, divergence
from nearplane.evaluate.perplexity import WindowOptions, perplexity, token_windows
from nearplane.types import NearplaneError
from tests.cli import tiny
from tests.evaluate.test_perplexity import STREAM, gemma2, gpt2

CUT = WindowOptions(context=24, stride=10, windows=5)
WINDOWS = token_windows(STREAM, 0, CUT)
FLOAT32 = 2.0**-24


# how much of its matrices a model is off by, so that it agrees with itself here and there
AMOUNT = {tiny.model: 0.1, gpt2: 1.0, gemma2: 0.3}


def disturbed(make, amount):
    """Return a model like `make()` whose matrices are off by a share of themselves."""
    model = make()
    generator = torch.Generator().manual_seed(3)
    for matrix in (p for p in model.parameters() if p.ndim == 2):
        noise = torch.randn(matrix.shape, generator=generator)
        matrix.data += amount * matrix.std() * noise
    return model


def pair(make):
    """Return the model and its reference, each from the same seed."""
    made = []
    for change in (lambda m: disturbed(m, AMOUNT[m]), lambda m: m()):
        torch.manual_seed(1)
        made.append(change(make))
    return made


def log_probabilities(model, windows):
    """Return the whole model's predictions of the scored tokens, normalised in float64."""
    with torch.no_grad():
        logits = model(input_ids=windows.tokens).logits.double()
    return logits[:, :-1][:, -windows.scored :].log_softmax(-1)


def plain(model, reference, windows):
    """Return (KL of every token, top-1) by the formula, and what float32 may change of the KL.

    A log-softmax of float32 is off by at most eps (|logit - max| + log of the sum + 1), so every
    log p and log q by eps (L + 1) with L their largest size, and the sum of p log(p/q) by three
    such errors: two in the difference and, times |log(p/q)| <= 2 L, one in p itself. 4 for what
    the bodies' products make of another batching.
    """
    log_q, log_p = (log_probabilities(m, windows) for m in (model, reference))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    size = float(max(log_p.abs().max(), log_q.abs().max()))
    limit = 4 * FLOAT32 * (size + 1) * (2 + float((log_p - log_q).abs().max()))
    return kl, float((log_p.argmax(-1) == log_q.argmax(-1)).double().mean()), limit


@pytest.mark.parametrize("make", [tiny.model, gpt2, gemma2])
def test_nothing_lies_between_a_model_and_itself(make):
    model = make()
    found = divergence(model, model, WINDOWS, CUT)
    assert (found.kl, found.top1) == (0.0, 1.0)
    assert found.model.nll == found.reference.nll


@pytest.mark.parametrize("make", [tiny.model, gpt2, gemma2])
@pytest.mark.parametrize("bytes_", [1, 10_000, 1e9])
def test_it_is_the_formula_whatever_the_slices(monkeypatch, make, bytes_):
    monkeypatch.setattr(perplexity_module, "LOGIT_BYTES", bytes_)
    model, reference = pair(make)
    kl, top1, limit = plain(model, reference, WINDOWS)
    found = divergence(model, reference, WINDOWS, CUT)
    assert 100 * limit < kl.mean()
    assert found.kl == pytest.approx(float(kl.mean()), abs=limit)
    # of 50 tokens, the largest
    assert found.kl_999 == pytest.approx(float(kl.max()), abs=50 * limit)
    assert found.top1 == pytest.approx(top1, abs=1e-12)
    assert 0 < found.top1 < 1


@pytest.mark.parametrize("amount", [1e-6, 1e-4, 1e-2, 1.0])
def test_it_is_never_negative(amount):
    model, reference = disturbed(tiny.model, amount), tiny.model()
    _, _, limit = plain(model, reference, WINDOWS)
    assert divergence(model, reference, WINDOWS, CUT).kl >= -limit


def test_it_has_a_direction():
    model, reference = pair(tiny.model)
    there = divergence(model, reference, WINDOWS, CUT).kl
    back = divergence(reference, model, WINDOWS, CUT).kl
    assert back == pytest.approx(float(plain(reference, model, WINDOWS)[0].mean()), rel=1e-4)
    assert abs(there - back) > 1e-3 * there


@pytest.mark.parametrize(
    "cut", [WindowOptions(32), WindowOptions(32, windows=3), WindowOptions(32, 7), WindowOptions(2)]
)
def test_it_scores_what_the_perplexity_scores(cut):
    model, reference = pair(tiny.model)
    windows = token_windows(STREAM, 0, cut)
    found = divergence(model, reference, windows, cut)
    for mine, alone in ((found.model, model), (found.reference, reference)):
        plainly = perplexity(alone, windows, cut)
        assert mine.nll == pytest.approx(plainly.nll, rel=1e-6)
        assert (mine.tokens, mine.stride, mine.fingerprint) == (
            plainly.tokens,
            plainly.stride,
            plainly.fingerprint,
        )
    assert found.kl == pytest.approx(float(plain(model, reference, windows)[0].mean()), rel=1e-4)
    assert found.tokens == windows.tokens.shape[0] * windows.scored
    ratio = found.model.perplexity / found.reference.perplexity
    assert found.estimates["perplexity_ratio"].value == pytest.approx(ratio, rel=1e-9)
    assert found.kl_99 <= found.kl_999


def test_an_impossible_token_adds_nothing():
    log_p = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
    log_q = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    expected = [math.log(2), math.log(4 / 3)]
    assert module.kl(log_p, log_q).tolist() == pytest.approx(expected, rel=1e-6)
    assert module.kl(log_p, log_p).tolist() == [0, 0]


def test_of_equal_tokens_the_first_counts():
    ties = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    other = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    assert module.agreements(ties, other).tolist() == [True, False]


def test_another_vocabulary_is_refused():
    config = tiny.model().config
    config.vocab_size = 321
    with pytest.raises(NearplaneError, match="321 tokens against the reference's 320"):
        divergence(LlamaForCausalLM(config), tiny.model(), WINDOWS, CUT)


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_damaged_model_is_named(damaged):
    models = [tiny.model(), tiny.model()]
    models[damaged].model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(NearplaneError, match="loss on this text is nan"):
        divergence(*models, WINDOWS, CUT)


def test_the_sentence_says_both():
    model, reference = pair(tiny.model)
    found = divergence(model, reference, WINDOWS, CUT)
    assert f"KL divergence {decimal(found.kl, 5)} nats" in found.sentence()
    assert "top-1 agreement" in found.sentence() and "50 tokens" in found.sentence()
    assert found.for_json()["model"]["context"] == 24


@pytest.mark.parametrize(
    "value, said",
    [(0.12345678, "0.12346"), (0.001, "0.00100"), (2.34e-7, "2.3e-07"), (0.0, "0.00000")],
)
def test_small_divergences_are_told_apart(value, said):
    assert decimal(value, 5) == said

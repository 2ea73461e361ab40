"""The perplexity is exp of the mean loss over exactly the tokens that the result says."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from nearplane.evaluate import perplexity as module
from nearplane.evaluate.perplexity import (
    WindowOptions,
    head_is_apart,
    losses,
    perplexity,
    text_windows,
    token_windows,
)
from nearplane.types import NearplaneError
from tests.cli import tiny
from tests.families import zoo

STREAM = torch.arange(2, 302) % 300


def plain_nll(model, tokens, scored):
    with torch.no_grad():
        logits = model(input_ids=tokens).logits.float()
    nll = cross_entropy(logits[:, :-1].mT, tokens[:, 1:], reduction="none")
    return nll[:, -scored:].double()


def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=320)).eval()


def gemma2():
    # its head caps its logits, which a product with the embedding alone would miss
    config = Gemma2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        vocab_size=320,
        final_logit_softcapping=0.5,
        initializer_range=0.5,
    )
    return Gemma2ForCausalLM(config).eval()


@pytest.mark.parametrize("make", [tiny.model, gpt2, gemma2])
@pytest.mark.parametrize("bytes_", [1, 10_000, 1e9])
def test_slices_of_the_head_change_nothing(monkeypatch, make, bytes_):
    monkeypatch.setattr(module, "LOGIT_BYTES", bytes_)
    torch.manual_seed(1)
    model = make()
    tokens = STREAM[:60].view(3, 20)
    for scored in (1, 7, 19):
        torch.testing.assert_close(
            losses(model, tokens, scored), plain_nll(model, tokens, scored), rtol=1e-5, atol=1e-5
        )
    assert "forward" not in model.base_model.__dict__


@pytest.mark.parametrize("bos", [None, 0])
def test_disjoint_windows_score_every_token_but_unopened_ones(bos):
    windows = token_windows(STREAM, bos, WindowOptions(context=32))
    body = 32 if bos is None else 31
    assert windows.tokens.shape == (300 // body, 32)
    assert windows.scored == 31
    kept = windows.tokens if bos is None else windows.tokens[:, 1:]
    assert torch.equal(kept.flatten(), STREAM[: len(windows.tokens) * body])
    assert bos is None or (windows.tokens[:, 0] == bos).all()


def test_a_stride_scores_the_tokens_between_two_windows_once():
    windows = token_windows(STREAM, 0, WindowOptions(context=32, stride=10))
    assert windows.scored == 10
    scored = windows.tokens[:, -10:].flatten()
    assert torch.equal(scored, STREAM[21 : 21 + len(scored)])


def test_result_agrees_with_the_plain_formula():
    model, cut = tiny.model(), WindowOptions(context=32, stride=16, windows=5)
    windows = token_windows(STREAM, 0, cut)
    result = perplexity(model, windows, cut)
    expected = float(plain_nll(model, windows.tokens, 16).mean())
    assert result.nll == pytest.approx(expected, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(expected), rel=1e-6)
    assert (result.tokens, result.windows, result.stride, result.bos) == (80, 5, 16, 0)
    assert "context 32, stride 16" in result.sentence()


def test_a_damaged_model_is_named():
    model = tiny.model()
    model.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(NearplaneError, match="loss on this text is nan"):
        perplexity(model, token_windows(STREAM, None, WindowOptions(32)), WindowOptions(32))


def test_a_short_text_says_what_it_has_and_needs():
    with pytest.raises(NearplaneError, match="300 tokens, and one window of 512 needs 511"):
        token_windows(STREAM, 0, WindowOptions(512))


@pytest.mark.parametrize("wrong", [{"context": 1}, {"stride": 0}, {"stride": 2000}, {"windows": 0}])
def test_impossible_cuts_are_refused(wrong):
    with pytest.raises(NearplaneError):
        WindowOptions(**wrong)


def test_the_text_follows_the_tokenizer_habit(text):
    assert text_windows(text, tiny.tokenizer(bos=True), WindowOptions(32)).bos == 0
    assert text_windows(text, tiny.tokenizer(bos=False), WindowOptions(32)).bos is None


@pytest.mark.parametrize("family", ["bart", "gemma2", "llama", "openai-gpt", "rwkv"])
def test_losses_are_those_of_the_model_s_own_logits(family):
    """Also of models that do not call their body where its hidden states could be put in."""
    model = zoo.tiny_model(family)
    tokens = torch.randint(3, 99, (2, 24), generator=torch.Generator().manual_seed(0))
    expected = plain_nll(model, tokens, 23)
    torch.testing.assert_close(losses(model, tokens, 23), expected, rtol=1e-4, atol=1e-4)
    assert head_is_apart(model, tokens) == (family != "bart")

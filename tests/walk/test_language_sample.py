"""The sample of languages and code takes its share of a calibration, and no more."""

import functools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearplane.walk.calibration import CalibrationRequest, calibrate
from nearplane.walk.language_sample import SHARE, sample_text, with_sample
from tests.cli import tiny


@functools.cache
def tokenizer(bos: bool = True):
    return tiny.tokenizer(bos)


@functools.cache
def sample_tokens() -> list[int]:
    return tokenizer()(sample_text(), add_special_tokens=False).input_ids


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(2, 40), st.booleans(), st.integers(0, 60))
def test_a_share_of_the_sequences_is_the_samples(count, length, opened, most):
    tokens = torch.full((count, length), -1)
    tokens[:, 0] = 0 if opened else -1
    mixed, added = with_sample(tokens, tokenizer(), opened, most)
    assert added == min(most, count // (SHARE - 1)) and len(mixed) == count + added
    own = mixed[(mixed[:, 1:] != -1).any(1)]
    assert len(own) == added and (not opened or (mixed[:, 0] == 0).all())
    stream = sample_tokens()
    body = length - opened
    runs = {tuple(stream[i : i + body]) for i in range(len(stream) - body + 1)}
    assert all(tuple(sequence) in runs for sequence in own[:, int(opened) :].tolist())


def test_sequences_longer_than_the_sample_repeat_it():
    stream = sample_tokens()
    mixed, _ = with_sample(torch.full((7, 2 * len(stream)), -1), tokenizer(), False, 1)
    assert mixed[(mixed != -1).all(1)].tolist() == [stream * 2]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 300), st.integers(4, 40), st.booleans())
def test_what_a_recipe_stores_gives_the_same_sequences(sequences, length, bos):
    """`verify` asks for as many sequences as there were, which may be fewer than were wanted."""
    wanted = CalibrationRequest(sequences, length, languages=True)
    tokens, account = calibrate([tiny.TEXT], tokenizer(bos), wanted)
    assert account.sequences == len(tokens) <= sequences
    assert account.language_sample <= len(tokens) // SHARE + 1
    stored = account.for_json()
    again = CalibrationRequest(stored["sequences"], length, languages=stored["language_sample"] > 0)
    other, second = calibrate([tiny.TEXT], tokenizer(bos), again)
    assert second.fingerprint == account.fingerprint and other.equal(tokens)


def test_it_is_said_and_can_be_left_out():
    wanted = CalibrationRequest(16, 16, languages=True)
    tokens, account = calibrate([tiny.TEXT], tokenizer(), wanted)
    assert f"{16 // SHARE} of them of nearplane's sample of languages" in account.sentence()
    alone, without = calibrate([tiny.TEXT], tokenizer(), replace(wanted, languages=False))
    assert "sample" not in without.sentence() and len(alone) == len(tokens) == 16


@pytest.mark.parametrize("listed", [False, True])
def test_nothing_is_mixed_into_tokens(listed):
    text = torch.arange(200).view(10, 20)
    wanted = CalibrationRequest(8, 20, languages=True)
    given_tokens = [text.flatten()] if listed else text
    tokens, account = calibrate(given_tokens, tokenizer(False), wanted)
    assert account.language_sample == 0 and len(tokens) == 8 and tokens.max() < 200


def test_the_sample_has_the_scripts_that_it_is_meant_for():
    """A letter of each: a copy in the wrong encoding would lose them."""
    for letter in "яїñçłşãåěțäאپअকกதあ汉據한ع":
        assert letter in sample_text(), letter
    unprintable = {c for c in sample_text() if not c.isprintable()}
    assert unprintable <= {"\n", "\u200c"}

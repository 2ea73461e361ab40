"""Several calibration sources: their shares, their order, what is written on the command line."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearplane.types import NearplaneError
from nearplane.walk.calibration import CalibrationRequest, calibrate
from nearplane.walk.sources import Sources, interleaved, weighted


class Words:
    """A tokenizer with one token a letter."""

    eos_token_id = bos_token_id = None

    def __call__(self, text, add_special_tokens=True):
        return type("Encoding", (), {"input_ids": [ord(letter) for letter in text]})

    def decode(self, tokens):
        return "".join(map(chr, tokens))


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=6),
    st.integers(6, 500),
)
def test_shares_add_up_and_are_within_one_of_the_weights(weights, count):
    sources = Sources({f"{index}": weight for index, weight in enumerate(weights)})
    found = sources.sequences(count)
    shares = {name: count * weight / sum(weights) for name, weight in sources.weights.items()}
    # sources that get less than one sequence get one, at the cost of nobody
    assert count <= sum(found.values()) <= count + len(weights)
    assert all(n >= 1 for n in found.values())
    assert all(n <= max(1, shares[name] + 1 + 1e-9) for name, n in found.items())


def test_several_files(tmp_path: Path):
    for letter in "ab":
        (tmp_path / f"{letter}.txt").write_text(letter * 1000)
    sources = {str(tmp_path / "a.txt"): 3, str(tmp_path / "b.txt"): 1}
    tokens, account = calibrate(sources, Words(), CalibrationRequest(8, 10))
    assert tokens[:, 0].tolist() == [97, 97, 98, 97, 97, 97, 98, 97]
    assert account.sequences == 8 and account.weights == sources and account.begins == "a" * 80
    again, second = calibrate(Sources(account.weights), Words(), CalibrationRequest(8, 10))
    assert again.equal(tokens) and second.fingerprint == account.fingerprint
    assert "begins" not in account.for_json()
    with pytest.raises(NearplaneError, match="use more sequences"):
        calibrate(sources, Words(), CalibrationRequest(1, 10))


def test_a_short_source_is_named(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a" * 1000)
    (tmp_path / "b.txt").write_text("b" * 25)
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    tokens, account = calibrate(paths, Words(), CalibrationRequest(8, 10))
    assert len(tokens) == 6 and account.remarks == (f"{paths[1]} fills 2 of its 4 sequences",)


@pytest.mark.parametrize(
    ("said", "source", "weight"),
    [
        ("a.txt", "a.txt", 1),
        ("a.txt:2", "a.txt", 2),
        ("owner/set:train:0.5", "owner/set:train", 0.5),
    ],
)
def test_weights_are_written_behind_a_colon(said, source, weight):
    assert weighted(said) == (source, weight)


@pytest.mark.parametrize("sources", [["a:0", "b"], ["a", "a:2"], []])
def test_odd_sources_are_refused(sources):
    with pytest.raises(NearplaneError):
        Sources.of(sources)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_every_source_is_spread_over_the_whole(counts):
    parts = [torch.full((count, 2), index) for index, count in enumerate(counts)]
    mixed = interleaved(parts)[:, 0]
    for index, count in enumerate(counts):
        places = (mixed == index).nonzero()[:, 0]
        assert len(places) == count
        # number i of n lies near (i + ½) / n of the whole, at most one step of each source away
        wanted = (torch.arange(count) + 0.5) / count * len(mixed)
        assert ((places + 0.5 - wanted).abs() <= len(counts)).all()

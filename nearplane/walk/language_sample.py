"""A sample of many languages and source code that is mixed into a calibration text."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from nearplane.walk.sources import interleaved

SHARE = 5  # one of so many sequences is the sample's


@cache
def sample_text() -> str:
    """Return the sample: paragraphs in 28 languages without English, and source code in eleven."""
    return Path(__file__).with_name("language_sample.txt").read_text(encoding="utf-8")


def with_sample(
    tokens: Int64[Tensor, "n length"], tokenizer: Any, opened: bool, most: int
) -> tuple[Int64[Tensor, "m length"], int]:
    """Return sequences, with one of the sample for every SHARE − 1, and how many these are.

    The sample's sequences begin evenly over all of it, and overlap where there are many. Nothing is
    added to fewer than SHARE − 1 sequences.

    - `opened`: whether the first token of every sequence is the one that opens a text.
    - `most`: at most so many of the sample.
    """
    count = min(most, len(tokens) // (SHARE - 1))
    stream = tokenizer(sample_text(), add_special_tokens=False).input_ids if count else []
    if not stream:
        return tokens, 0
    body = tokens.shape[1] - opened
    stream = torch.tensor(stream * -(-body // len(stream)), dtype=torch.long, device="cpu")
    last = len(stream) - body
    starts = [last * i // max(count - 1, 1) for i in range(count)]
    sample = torch.stack([stream[start : start + body] for start in starts])
    if opened:
        sample = torch.cat([tokens[:count, :1], sample], dim=1)
    return interleaved([tokens, sample]), count

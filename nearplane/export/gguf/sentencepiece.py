"""SentencePiece BPE: merges of tokenizers -> the scores by which llama.cpp merges.

llama.cpp merges whatever two pieces make a token, that of the highest score first, and knows no
list of merges: the list must be what SentencePiece's scores would give.
"""

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from nearplane.types import NearplaneError

SPACE = "▁"
UNMERGED = -1e6  # the score of a token that no merge makes
ESCAPED = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPENDED = {"type": "Prepend", "prepend": SPACE}
WORDS = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def is_sentencepiece(backend: dict[str, Any]) -> bool:
    """Whether unknown characters become bytes, as in SentencePiece; else text does, at once."""
    return bool(backend["model"].get("byte_fallback"))


def check(backend: dict[str, Any]) -> list[str]:
    """Return a sentence for each thing that llama.cpp does otherwise; NearplaneError for others."""
    vocabulary, added = backend["model"]["vocab"], found_first(backend)
    missing = [byte for byte in BYTES if byte not in vocabulary]
    if missing:
        raise NearplaneError(f"the tokenizer has no token {missing[0]}, which llama.cpp needs")
    odd = unlike_scores(merges_of(backend), vocabulary.keys() - added.keys())
    if odd is not None:
        raise NearplaneError(
            f"llama.cpp would merge {odd[0]!r} and {odd[1]!r} in another order than the tokenizer, "
            "whose merges are not SentencePiece's"
        )
    _, sentences = space_prefix(backend)
    return sentences


def found_first(backend: dict[str, Any]) -> dict[str, str]:
    """Return what is found in a text before anything is merged, and how llama.cpp finds it.

    tokenizers finds an added token that is not `normalized` in the text as it is written, so that
    one with ▁ comes of merges. Where these make the longest run of spaces first, llama.cpp finds
    runs before it merges; else it merges them, too.
    """
    added: list[dict[str, Any]] = backend.get("added_tokens") or []
    runs = [each["content"] for each in added if not each["content"].strip(SPACE)]
    longest, found = not runs or makes_longest(backend, runs), {}
    for each in added:
        text = each["content"]
        spaced = each["normalized"] or text in runs
        if each["normalized"] or longest or text not in runs:
            found[text] = text.replace(SPACE, " ") if spaced and not each["special"] else text
    return found


def makes_longest(backend: dict[str, Any], runs: list[str]) -> bool:
    """Whether merges make of any number of spaces the longest of these runs, again and again."""
    model = Tokenizer.from_str(json.dumps(backend)).model
    lengths = sorted({1, *map(len, runs)}, reverse=True)
    for count in range(1, 2 * lengths[0] + 2):
        wanted, left = [], count
        while left:
            wanted.append(next(length for length in lengths if length <= left))
            left -= wanted[-1]
        if [len(token.value) for token in model.tokenize(SPACE * count)] != wanted:
            return False
    return True


def merges_of(backend: dict[str, Any]) -> list[list[str]]:
    """Return the pairs of tokens that become one, the first first."""
    merges = backend["model"]["merges"]
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]


def scores_of(backend: dict[str, Any]) -> dict[str, float]:
    """Return minus the position of the first merge that makes a token."""
    scores: dict[str, float] = {}
    for position, pair in enumerate(merges_of(backend)):
        scores.setdefault("".join(pair), -float(position))
    return scores


def unlike_scores(merges: list[list[str]], tokens: set[str]) -> tuple[str, str] | None:
    """Return a pair of pieces that scores of tokens would merge at another time, or None.

    - `tokens`: without those that are found before anything is merged.
    """
    known = {(left, right) for left, right in merges}
    for token in tokens:
        for pair in halves_of(token):
            if pair not in known and all(len(half) == 1 or half in tokens for half in pair):
                return pair
    finished, last = set[str](), ""
    for left, right in merges:
        made = left + right
        if made != last:
            if made in finished and made in tokens:
                return left, right
            finished.add(last)
            last = made
    return None


def halves_of(token: str) -> Iterator[tuple[str, str]]:
    """Yield all ways to cut a token in two."""
    return ((token[:i], token[i:]) for i in range(1, len(token)))


def space_prefix(backend: dict[str, Any]) -> tuple[bool, list[str]]:
    """Return whether a text is read as if a space came before it, and where llama.cpp differs.

    NearplaneError for a tokenizer that changes text in another way, or cuts it into words.
    """
    outer = backend["normalizer"] or {"type": "Sequence", "normalizers": []}
    changes: list[Any] = outer.get("normalizers", [outer])
    cut = backend["pre_tokenizer"]
    if cut is not None and cut["type"] == "Metaspace" and not cut["split"] and not changes:
        scheme = cut["prepend_scheme"]
        others = "begins with a space or follows a special token"
        others = others if scheme == "first" else "begins with a space"
        said = f"llama.cpp adds a space to text that {others}, where the tokenizer does not"
        return scheme != "never", [said] if scheme != "never" else []
    if cut is not None and not (cut.items() >= WORDS.items() and not cut["invert"]):
        raise NearplaneError(f"the tokenizer cuts text by {cut['type']}, which llama.cpp does not")
    if changes not in ([ESCAPED], [PREPENDED, ESCAPED]):
        names = ", ".join(str(each["type"]) for each in changes) or "nothing"
        raise NearplaneError(
            f"the tokenizer changes text by {names}, and llama.cpp by putting {SPACE} for spaces"
        )
    return len(changes) == 2, []

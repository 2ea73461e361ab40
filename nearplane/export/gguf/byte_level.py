"""Byte-level BPE: a pre-tokenizer of tokenizers -> llama.cpp's name of how text is split.

llama.cpp has its own code for each name, so that what is not in the table is refused: there is no
default that would answer for it.
"""

from typing import Any

from nearplane.types import NearplaneError

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
CAPITALS, SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = r"[^\r\n\p{L}\p{N}]?" + CAPITALS + "*" + SMALL + "+"
CAPITALIZED = r"[^\r\n\p{L}\p{N}]?" + CAPITALS + "+" + SMALL + "*"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
SIGNS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
LLAMA3 = "|".join([CONTRACTIONS, WORD, r"\p{N}{1,3}", SIGNS, SPACES])
QWEN2 = "|".join([CONTRACTIONS, WORD, r"\p{N}", SIGNS, SPACES])
TEKKEN = "|".join([CASED, CAPITALIZED, r"\p{N}", SIGNS_AND_SLASHES, SPACES])
GPT4O = "|".join(
    [CASED + CONTRACTIONS + "?", CAPITALIZED + CONTRACTIONS + "?"]
    + [r"\p{N}{1,3}", SIGNS_AND_SLASHES, SPACES]
)
QWEN35 = "|".join(
    [CONTRACTIONS, r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r"\p{N}"]
    + [r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", SPACES]
)
SEED_CODER = "|".join([CONTRACTIONS, WORD, r"\p{N}{1}", r" ?[^\s\p{L}\p{N}\r\n]+", SPACES])
CHINESE = "[一-龥ࠀ-一가-퟿]+"
DEEPSEEK_CODER = ", ".join([r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CHINESE, "digits"])
DEEPSEEK_WORDS = [r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+", r" ?[\p{P}\p{S}]+[\r\n]*", SPACES]
PUNCTUATED = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
DEEPSEEK3 = ", ".join(
    [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+"] + ["|".join([PUNCTUATED, *DEEPSEEK_WORDS])]
)
# how text is split, and whether whole words of the vocabulary need no merges -> llama.cpp's name
SPLITS = {
    (LLAMA3, True): "llama-bpe",
    (LLAMA3, False): "dbrx",
    (QWEN2, False): "qwen2",
    (TEKKEN, True): "tekken",
    (GPT4O, False): "gpt-4o",
    (QWEN35, False): "qwen35",
    (SEED_CODER, False): "seed-coder",
    (DEEPSEEK_CODER, False): "deepseek-coder",
    (DEEPSEEK3, False): "deepseek-v3",
    ("words", False): "gpt-2",
    ("digits, words", False): "smollm",
}
# whose expressions llama.cpp has for the letters a to z only
LATIN = ("tekken", "gpt-4o")


def check(backend: dict[str, Any]) -> list[str]:
    """Return a sentence for each thing that llama.cpp does otherwise; NearplaneError for others."""
    said, normalizer = [], backend["normalizer"]
    if split_of(backend) in LATIN:
        said.append(
            "llama.cpp splits words at combining marks, and at no capital but A to Z, where the "
            "tokenizer splits at all capitals and at no mark"
        )
    if normalizer is not None:
        if normalizer["type"] != "NFC":
            raise NearplaneError(
                f"the tokenizer changes text by {normalizer['type']}, which llama.cpp does not"
            )
        said.append("llama.cpp takes text as it is, where the tokenizer brings it to Unicode's NFC")
    return said


def split_of(backend: dict[str, Any]) -> str:
    """Return llama.cpp's name of how text is split; NearplaneError if it has none."""
    outer: dict[str, Any] = backend["pre_tokenizer"] or {"type": "none"}
    steps: list[dict[str, Any]] = outer.get("pretokenizers", [outer])
    patterns = [pattern_of(step) for step in steps]
    pattern = ", ".join(part for part in patterns if part)
    name = SPLITS.get((pattern, bool(backend["model"].get("ignore_merges"))))
    if name is None:
        raise NearplaneError(
            f"the tokenizer splits text in a way that llama.cpp is not known to have: {pattern!r}"
        )
    return name


def pattern_of(step: dict[str, Any]) -> str:
    """Return how one step of a tokenizer splits text: a regular expression, or a word."""
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        pattern = step["pattern"].get("Regex", "another pattern")
        # the same, written as the character or as its escape
        return pattern.replace("\r", r"\r").replace("\n", r"\n")
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return "words" if step["use_regex"] else ""
    if step["type"] == "Digits" and step["individual_digits"]:
        return "digits"
    return step["type"]

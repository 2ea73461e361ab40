"""A tokenizer of transformers -> the vocabulary of a GGUF file.

llama.cpp has a name for every way of splitting text in front of byte-level merges; a tokenizer
that splits in another way is refused. SentencePiece vocabularies merge the pair of the highest
score first: a token's score is minus the position of the merge that makes it.
"""

import json
from typing import Any

from gguf import GGUFWriter, TokenType

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
# how text is split, and whether whole words of the vocabulary need no merges -> llama.cpp's name
SPLITS = {
    (LLAMA3, True): "llama-bpe",
    (LLAMA3, False): "dbrx",
    (QWEN2, False): "qwen2",
    (TEKKEN, True): "tekken",
    (GPT4O, False): "gpt-4o",
    ("words", False): "gpt-2",
    ("digits, words", False): "smollm",
}
UNMERGED = -1e6  # the score of a token that no merge makes
SPACE = "▁"


def add_vocabulary(writer: GGUFWriter, tokenizer: Any, rows: int) -> None:
    """Write tokens, merges or scores, special tokens and the chat template of a fast tokenizer.

    - `rows`: of the embedding; tokens are padded to as many.

    Raises NearplaneError for a tokenizer that llama.cpp has no name for.
    """
    backend = backend_of(tokenizer)
    tokens = tokens_of(tokenizer, backend, rows)
    writer.add_token_list([text for text, _ in tokens])
    if is_sentencepiece(backend):
        scores = scores_of(backend)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([scores.get(text, UNMERGED) for text, _ in tokens])
        writer.add_add_space_prefix(begins_with_space(tokenizer))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(split_of(backend))
        writer.add_token_merges([" ".join(pair).replace("  ", " Ġ") for pair in merges_of(backend)])
    writer.add_token_types([kind for _, kind in tokens])
    add_special_tokens(writer, tokenizer)


def backend_of(tokenizer: Any) -> dict[str, Any]:
    """Return a fast tokenizer as JSON; NearplaneError for another, or one without merges."""
    if not getattr(tokenizer, "is_fast", False):
        name = type(tokenizer).__name__
        raise NearplaneError(f"the tokenizer {name} has no tokenizer.json, which GGUF is made from")
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    if backend["model"]["type"] != "BPE":
        raise NearplaneError(
            f"a tokenizer of the kind {backend['model']['type']} cannot be written to GGUF, only "
            "byte-level BPE and SentencePiece BPE"
        )
    if not is_sentencepiece(backend):
        split_of(backend)
    return backend


def is_sentencepiece(backend: dict[str, Any]) -> bool:
    """Whether unknown characters become bytes, as in SentencePiece; else text does, at once."""
    return bool(backend["model"].get("byte_fallback"))


def tokens_of(tokenizer: Any, backend: dict[str, Any], rows: int) -> list[tuple[str, TokenType]]:
    """Return the text and kind of every token by its number."""
    added = tokenizer.added_tokens_decoder
    names = {number: text for text, number in tokenizer.get_vocab().items()}
    if names and max(names) >= rows:
        raise NearplaneError(
            f"the tokenizer has {max(names) + 1} tokens, the embedding {rows} rows: add the rows "
            "before quantizing"
        )
    unknown, bytewise = backend["model"].get("unk_token"), is_sentencepiece(backend)
    found = []
    for number in range(rows):
        text = names.get(number)
        if text is None:
            found.append((f"[PAD{number}]", TokenType.UNUSED))
        elif bytewise and text == unknown:
            found.append((text, TokenType.UNKNOWN))
        elif number in added:
            special = added[number].special
            kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
            found.append((text if special else text.replace(SPACE, " "), kind))
        elif bytewise and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            found.append((text, TokenType.BYTE))
        else:
            found.append((text, TokenType.NORMAL))
    return found


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
        return step["pattern"].get("Regex", "another pattern")
    if step["type"] == "ByteLevel" and not step["add_prefix_space"]:
        return "words" if step["use_regex"] else ""
    if step["type"] == "Digits" and step["individual_digits"]:
        return "digits"
    return step["type"]


def begins_with_space(tokenizer: Any) -> bool:
    """Whether a text's first word is read as if a space came before it."""
    ids = tokenizer("a", add_special_tokens=False).input_ids
    return bool(ids) and tokenizer.convert_ids_to_tokens(ids[:1])[0].startswith(SPACE)


def add_special_tokens(writer: GGUFWriter, tokenizer: Any) -> None:
    """Write which tokens are special, which of them a text is put between, and the template."""
    for kind in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{kind}_token_id", None)
        if number is not None:
            getattr(writer, f"add_{kind}_token_id")(number)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(ids) and ids[-1] == tokenizer.eos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)

"""A tokenizer of transformers -> the vocabulary of a GGUF file.

Two kinds of tokenizers can be written: byte-level BPE (`byte_level.py`) and SentencePiece BPE
(`sentencepiece.py`). What llama.cpp does otherwise on some texts is returned as sentences, and a
tokenizer that it would read otherwise on all is refused.
"""

import json
import re
from typing import Any

from gguf import GGUFWriter, TokenType

from nearplane.export.gguf import byte_level, sentencepiece
from nearplane.export.gguf.sentencepiece import (
    BYTES,
    UNMERGED,
    found_first,
    is_sentencepiece,
    merges_of,
    scores_of,
    space_prefix,
)
from nearplane.types import NearplaneError

UNREAD = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
# for a model of such a name llama.cpp drops white space behind all added tokens but these
PHI3, PHI3_KEPT = re.compile("phi-?3", re.IGNORECASE), ("<unk>", "<s>", "<|endoftext|>")
READ_OTHERWISE = re.compile("phi-3|phi3|modern-bert", re.IGNORECASE)
SHOWN = 3  # tokens in a sentence


def add_vocabulary(writer: GGUFWriter, tokenizer: Any, rows: int) -> list[str]:
    """Write tokens, merges or scores, special tokens and the chat template of a fast tokenizer.

    Returns a sentence for each thing that llama.cpp does otherwise on some texts.

    - `rows`: of the embedding; tokens are padded to as many.

    Raises NearplaneError for a tokenizer that llama.cpp has no name for.
    """
    backend = backend_of(tokenizer)
    kind = sentencepiece if is_sentencepiece(backend) else byte_level
    differences = [*kind.check(backend), *strip_differences(tokenizer)]
    tokens = tokens_of(tokenizer, backend, rows)
    writer.add_token_list([text for text, _ in tokens])
    if is_sentencepiece(backend):
        scores = scores_of(backend)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([scores.get(text, UNMERGED) for text, _ in tokens])
        writer.add_add_space_prefix(space_prefix(backend)[0])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(byte_level.split_of(backend))
        writer.add_token_merges([" ".join(pair).replace("  ", " Ġ") for pair in merges_of(backend)])
    writer.add_token_types([kind for _, kind in tokens])
    add_special_tokens(writer, tokenizer)
    return differences


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
    for name in UNREAD:
        if backend["model"].get(name):
            raise NearplaneError(f"llama.cpp has no {name} of a tokenizer, as this one has")
    return backend


def tokens_of(tokenizer: Any, backend: dict[str, Any], rows: int) -> list[tuple[str, TokenType]]:
    """Return the text and kind of every token by its number."""
    added = tokenizer.added_tokens_decoder.values()
    special = {each.content for each in added if each.special}
    names = {number: text for text, number in tokenizer.get_vocab().items()}
    if names and max(names) >= rows:
        raise NearplaneError(
            f"the tokenizer has {max(names) + 1} tokens, the embedding {rows} rows: add the rows "
            "before quantizing"
        )
    unknown, bytewise = backend["model"].get("unk_token"), is_sentencepiece(backend)
    first = found_first(backend) if bytewise else {each.content: each.content for each in added}
    found = []
    for number in range(rows):
        text = names.get(number)
        if text is None:
            found.append((f"[PAD{number}]", TokenType.UNUSED))
        elif bytewise and text == unknown:
            found.append((text, TokenType.UNKNOWN))
        elif text in first:
            kind = TokenType.CONTROL if text in special else TokenType.USER_DEFINED
            found.append((first[text], kind))
        elif bytewise and text in BYTES:
            found.append((text, TokenType.BYTE))
        else:
            found.append((text, TokenType.NORMAL))
    return found


def strips_as_phi3(tokenizer: Any) -> bool:
    """Whether white space behind added tokens is dropped as llama.cpp does it for Phi-3."""
    added = {each.content: each for each in tokenizer.added_tokens_decoder.values()}
    named = {"</s>", *PHI3_KEPT} <= added.keys()
    return named and all(
        each.rstrip == (text not in PHI3_KEPT) and not each.lstrip for text, each in added.items()
    )


def strip_differences(tokenizer: Any) -> list[str]:
    """Return a sentence on white space and word borders that only the tokenizer minds."""
    if strips_as_phi3(tokenizer):
        return []
    added = tokenizer.added_tokens_decoder.values()
    minded = [each.content for each in added if each.lstrip or each.rstrip or each.single_word]
    if not minded:
        return []
    shown = ", ".join(minded[:SHOWN]) + (", ..." if len(minded) > SHOWN else "")
    return [f"llama.cpp keeps white space beside {shown}, where the tokenizer drops it"]


def general_name(name: str, tokenizer: Any) -> str:
    """Return a name of a model by which llama.cpp reads its vocabulary as the tokenizer does."""
    if strips_as_phi3(tokenizer):
        return name if PHI3.search(name) else f"{name} (phi-3)"
    return READ_OTHERWISE.sub(lambda found: found[0].replace("-", " ").replace("i3", "i 3"), name)


def add_special_tokens(writer: GGUFWriter, tokenizer: Any) -> None:
    """Write which tokens are special, which of them a text is put between, and the template."""
    for kind in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{kind}_token_id", None)
        if number is not None:
            getattr(writer, f"add_{kind}_token_id")(number)
    first, last = put_around(tokenizer)
    writer.add_add_bos_token(first)
    writer.add_add_eos_token(last)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def put_around(tokenizer: Any) -> tuple[bool, bool]:
    """Return whether BOS is put before a text, and EOS behind; NearplaneError for other tokens."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    for first in ([], [tokenizer.bos_token_id]):
        for last in ([], [tokenizer.eos_token_id]):
            if whole == [*first, *plain, *last]:
                return bool(first), bool(last)
    shown = " ".join(tokenizer.convert_ids_to_tokens(whole))
    raise NearplaneError(
        f"the tokenizer makes {shown!r} of 'a', and llama.cpp puts only BOS and EOS around a text"
    )

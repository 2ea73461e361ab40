"""Stock llama.cpp cuts texts of all scripts into the tokens of the model's own tokenizer."""

import json
import random
import re

import gguf
import pytest
from sentencepiece import SentencePieceTrainer
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nearplane.export.gguf.byte_level import LATIN, SPLITS
from nearplane.export.gguf.vocabulary import add_vocabulary, general_name
from tests.llamacpp.test_gguf_files import ask, pytestmark  # noqa: F401 - skips all of these

PARTS = [
    *("the nearest plane", "Of A LATTICE", "don't WE'LL I've it's", "camelCaseWORDSand", "naïve"),
    *("привет, мир!", "Ünïcödé", "مرحبا بالعالم", "नमस्ते दुनिया", "漢字仮名交じり文", "한국어 문장"),
    *("ภาษาไทย", "עברית", "Ǆ ǅ ǆ ſ K Å", "ǅemal ﬁn", "é é Å ñ", "😀👍🏽", "👩‍👩‍👧", "🏳️‍🌈"),
    *(
        "123",
        "1,234.5",
        "007 0x1F",
        "١٢٣ ४५६ ½²",
        "\n",
        "\n\n\n",
        "\r\n",
        "\t",
        " ",
        "  ",
        "       ",
    ),
    *("def f(x):\n    return x**2  # ok", "{'a': [1, 2]}", "<p>/a/b\\c</p>", "...!?", "«“”»", "—"),
    *("\u00a0", "\u3000", "\u200b", "▁", "\x00", "<0x0A>", "a" * 40, "=" * 70, "~!@#$%^&*()_+|`"),
]
# what llama.cpp's expressions for GPT-4o and Tekken leave out
MARKS_AND_CAPITALS = re.compile("[\u0300-\u036f\u0900-\u0983\u093a-\u094f\u0e31-\u0e4e]|[ПÜÏÖÅǄǅK]")
SPECIAL = [f"a<s>b </s>\n<|user|> {text}" for text in PARTS]
CORPUS = [f"{first} {second}" for first in PARTS for second in PARTS]


def texts(count=400):
    """Return texts of all scripts, some without a space between what they are made of."""
    draws = random.Random(0)
    made = [draws.choices(PARTS, k=draws.randint(1, 6)) for _ in range(count)]
    return ["", *PARTS, *(draws.choice(["", " "]).join(each) for each in made)]


def differing(tokenizer, texts, folder, name="model"):
    """Return the texts that llama.cpp cuts otherwise than a tokenizer, and what was said of it."""
    file = folder / "vocabulary.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name(general_name(name, tokenizer))
    said = add_vocabulary(writer, tokenizer, len(tokenizer) + 5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    cut = json.loads(str(ask(file, {"texts": texts}, folder)["cut"]))
    own = tokenizer(texts).input_ids
    return [text for text, a, b in zip(texts, cut, own, strict=True) if a != b], said


def bytewise(pattern, merged, size=900):
    """Return a tokenizer of byte-level BPE that splits text by a pattern, trained on PARTS."""
    made = Tokenizer(models.BPE(ignore_merges=merged))
    steps = {
        "words": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "digits": pre_tokenizers.Digits(individual_digits=True),
    }
    split = [
        steps.get(part) or pre_tokenizers.Split(Regex(part), behavior="isolated")
        for part in pattern.split(", ")
    ]
    if "words" not in pattern:
        split.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    made.pre_tokenizer = pre_tokenizers.Sequence(split)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "</s>", "<|user|>"], initial_alphabet=alphabet
    )
    made.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(("pattern", "merged"), SPLITS, ids=list(SPLITS.values()))
def test_byte_level_vocabularies(pattern, merged, tmp_path):
    """But for what is said of letters that are not a to z."""
    tokenizer = bytewise(pattern, merged)
    odd, said = differing(tokenizer, texts() + SPECIAL, tmp_path)
    if SPLITS[pattern, merged] in LATIN:
        assert any("combining marks" in sentence for sentence in said)
        odd = [text for text in odd if not MARKS_AND_CAPITALS.search(text)]
    assert not odd, [len(odd), odd[:6]]


SAID = {"first": "begins with a space or follows a special", "always": "begins with a space, where"}


@pytest.mark.parametrize("kind", ["first", "always", "prepend", "phi-3", "gemma"])
def test_sentencepiece_vocabularies(kind, tmp_path):
    """Of a tokenizer.model, as transformers reads it for Llama and Gemma; of Phi-3's form."""
    tokenizer = sentencepieces(kind, tmp_path)
    odd, said = differing(tokenizer, texts() + SPECIAL, tmp_path)
    assert [SAID[kind] in sentence for sentence in said] == [True] * (kind in SAID)
    if kind in SAID:
        begins = [text for text in odd if text[:1] in (" ", "▁")]
        after = [text for text in odd if text in SPECIAL and kind == "first"]
        assert begins and set(odd) == {*begins, *after}
        return
    # Unicode's white space beyond ASCII is dropped by the tokenizer only
    odd = [text for text in odd if kind != "phi-3" or text[-1] not in "\u00a0\u3000"]
    assert not odd, [len(odd), odd[:6]]


def sentencepieces(kind, folder):
    """Return a tokenizer that was trained by sentencepiece, with tokens for all bytes."""
    corpus, gemma = folder / "corpus.txt", kind == "gemma"
    corpus.write_text("\n".join(re.sub("[\0\r\n]", " ", text) for text in CORPUS))
    options = {"add_dummy_prefix": False, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
    options |= {"user_defined_symbols": ["<|user|>", "\n", "\n\n", "▁▁", "▁▁▁"]}
    SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=800,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **(options if gemma else {}),
    )
    settings = {"tokenizer_class": "GemmaTokenizer" if gemma else "LlamaTokenizer"}
    settings |= {"legacy": kind == "always"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma2" if gemma else "llama"}))
    read = AutoTokenizer.from_pretrained(folder)
    if kind not in ("prepend", "phi-3"):
        return read
    made = read.backend_tokenizer
    made.pre_tokenizer, replace = None, normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    strips = kind == "phi-3"
    names = ["<unk>", "<s>", "<|endoftext|>", "</s>", "<|user|>"]
    made.add_special_tokens(
        [
            AddedToken(name, rstrip=strips and i > 2, normalized=False)
            for i, name in enumerate(names)
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="<unk>")

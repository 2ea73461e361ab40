"""A model directory with random weights and a tokenizer of its own, and texts for it."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "the nearest plane of a lattice is found by rounding one coordinate after the other "
TEXT = "".join(WORDS[i % 40 :] + f"{i * i} " for i in range(200))
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
SMALL = ("--bpw", "5", "--sequences", "8", "--length", "32")


def tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer, with or without the habit of opening texts."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet
    )
    made.train_from_iterator([TEXT], trainer)
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )


def model(layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=320,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def write_model(directory: Path, layers: int = 2, bos: bool = True) -> Path:
    """Write a model directory and return it."""
    model(layers).save_pretrained(directory)
    tokenizer(bos).save_pretrained(directory)
    return directory


def write_text(path: Path, text: str = TEXT) -> Path:
    path.write_text(text)
    return path

"""What `--tiny` of a bench needs: other defaults, and a model and a text that are made on the spot.

With `--tiny` a bench does all that it does, at sizes that take seconds. Its numbers then tell that
it runs, and nothing else. Peers are left out.

This file imports only the standard library: some benches measure the memory of processes, and a
child's peak memory starts at its parent's.
"""

import argparse
import json
import math
import random
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ASKED = "--tiny" in sys.argv[1:]
LEFT_OUT = "left out: --tiny runs without peers"
HIDDEN, INNER, BLOCKS, WORDS = 64, 128, 2, 257
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": HIDDEN // 2,
    "vocab_size": WORDS,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
TEXT = "".join(f"the nearest plane of lattice {i} is {i * i % 97} steps away\n" for i in range(60))


def parse(parser: argparse.ArgumentParser, **sizes: Any) -> argparse.Namespace:
    """Add `--tiny` and return the options, whose defaults are then `sizes`."""
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: that it runs, in seconds")
    if ASKED:
        parser.set_defaults(**sizes)
    return parser.parse_args()


@contextmanager
def supplied(args: argparse.Namespace, **paths: str) -> Iterator[None]:
    """With `--tiny`, give options that are None paths in a folder with a model and a text."""
    if not args.tiny:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        for name, path in paths.items():
            if getattr(args, name) is None:
                setattr(args, name, Path(folder, path))
        yield


def write(folder: Path) -> None:
    """Write folder/model, a Llama of random weights that reads bytes, and folder/text.txt."""
    (folder / "text.txt").write_text(TEXT)
    model = folder / "model"
    model.mkdir()
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    files = {"config": CONFIG, "tokenizer": tokenizer(), "tokenizer_config": settings}
    for name, content in files.items():
        (model / f"{name}.json").write_text(json.dumps(content))
    draws = random.Random(0)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, shape in shapes().items():
        start = len(data)
        for _ in range(math.prod(shape)):
            value = 1.0 if name.endswith("norm.weight") else draws.gauss(0, 0.1)
            data += struct.pack("<f", value)[2:]  # its upper half is a bfloat16
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, len(data)]}
    said = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(said)) + said + data)


def shapes() -> dict[str, list[int]]:
    """Return the shape of every tensor of the model."""
    found = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), [WORDS, HIDDEN])
    found["model.norm.weight"] = [HIDDEN]
    for block in range(BLOCKS):
        at = f"model.layers.{block}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{at}.{norm}.weight"] = [HIDDEN]
        for name in "qkvo":
            found[f"{at}.self_attn.{name}_proj.weight"] = [HIDDEN, HIDDEN]
        for name in ("gate", "up"):
            found[f"{at}.mlp.{name}_proj.weight"] = [INNER, HIDDEN]
        found[f"{at}.mlp.down_proj.weight"] = [HIDDEN, INNER]
    return found


def tokenizer() -> dict[str, Any]:
    """Return a tokenizer.json whose tokens are bytes, and one that opens texts."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    # byte-level tokenizers write the bytes that have no picture as characters from 256 on
    characters = [*map(chr, shown), *(chr(256 + index) for index in range(len(hidden)))]
    opening = {"id": 0, "content": "<s>", "special": True, "single_word": False}
    opening |= {"lstrip": False, "rstrip": False, "normalized": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    vocabulary = {word: index for index, word in enumerate(["<s>", *characters])}
    return {
        "version": "1.0",
        "added_tokens": [opening],
        "pre_tokenizer": level | {"use_regex": True},
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }

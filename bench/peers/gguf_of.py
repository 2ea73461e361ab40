"""Write what llama.cpp quantizes from: the linear layers as a GGUF file, and their importance.

    gguf_of.py MODEL TOKENS.safetensors OUT [--fold]

OUT/model.gguf holds the linear layers of the blocks in bfloat16 under llama.cpp's names, as a model
of the architecture "llama": llama.cpp chooses types by these names and by its heads and blocks.
The rows of attn_q and attn_k keep their order: they are quantized one by one, and the file is
only decoded again, never run. OUT/imatrix.npz holds the mean of the squares of every column's
inputs, on TOKENS, which is what llama.cpp's own importance matrix is.

llama.cpp stores a tensor in larger types than asked for when its columns are no multiple of 256.
`--fold` writes as many rows in one as make them one, so that small types can be compared at
their own size on such a model: only a few blocks then hold the end of one row and the beginning of
the next. llama.cpp cannot run what comes of it.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from decode import GGUF_LINEARS
from safetensors.torch import load_file
from torch import nn

from nearplane.model.open_model import open_model

BATCH_TOKENS = 2048
BLOCK = 256  # columns of a block of llama.cpp's smaller types


def linears_of(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of the blocks by llama.cpp's names, without ".weight"."""
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or not name.startswith("model.layers."):
            continue
        block, _, kind = name.removeprefix("model.layers.").partition(".")
        if kind not in GGUF_LINEARS:
            raise ValueError(f"{name} has no name in a llama-like GGUF file")
        found[f"blk.{block}.{GGUF_LINEARS[kind]}"] = module
    return found


def folds_of(linears: dict[str, nn.Linear], fold: bool) -> dict[str, int]:
    """Return how many rows of each layer are written as one."""
    folds = {}
    for name, linear in linears.items():
        folds[name] = BLOCK // math.gcd(BLOCK, linear.in_features) if fold else 1
        if linear.out_features % folds[name]:
            raise ValueError(f"{name}: {linear.out_features} rows do not fold by {folds[name]}")
    return folds


def importance(model: Any, linears: dict[str, nn.Linear], tokens: torch.Tensor) -> dict:
    """Return the mean square of every column's inputs by llama.cpp's names."""
    sums = {name: torch.zeros(linear.in_features) for name, linear in linears.items()}

    def watch(name: str) -> Any:
        def add(_: nn.Module, args: tuple) -> None:
            sums[name] += args[0].float().square().flatten(0, -2).sum(0)

        return add

    hooks = [la.register_forward_pre_hook(watch(name)) for name, la in linears.items()]
    with torch.no_grad():
        for batch in tokens.split(max(1, BATCH_TOKENS // tokens.shape[1])):
            model.base_model(input_ids=batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: (total / tokens.numel()).numpy() for name, total in sums.items()}


def write_gguf(
    config: Any, linears: dict[str, nn.Linear], folds: dict[str, int], path: Path
) -> None:
    """Write the linear layers in bfloat16, and the few numbers that llama.cpp wants to know."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for name, linear in linears.items():
        weight = linear.weight.detach().to(torch.bfloat16).contiguous()
        bits = weight.view(len(weight) // folds[name], -1).view(torch.uint8).numpy()
        writer.add_tensor(f"{name}.weight", bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("tokens", help='safetensors file with int "tokens" (sequences, length)')
    parser.add_argument("out", type=Path)
    parser.add_argument("--fold", action="store_true", help="make columns a multiple of 256")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    model: Any = open_model(args.model).model
    linears = linears_of(model)
    folds = folds_of(linears, args.fold)
    write_gguf(model.config, linears, folds, args.out / "model.gguf")
    written = time.perf_counter()
    tokens = load_file(args.tokens)["tokens"].long()
    squares = importance(model, linears, tokens)
    folded = {f"{name}.weight": np.tile(squares[name], folds[name]) for name in linears}
    np.savez(args.out / "imatrix.npz", **folded)
    seconds = {"gguf": written - started, "importance": time.perf_counter() - written}
    print(json.dumps({"peer": "llamacpp", "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()

"""Evaluate a quantized checkpoint, nearplane's or a peer's, beside the model it was made of.

    evaluate.py MODEL CHECKPOINT TEXT [--context 1024] [--windows 32] [--remember FILE]

Every checkpoint becomes the same thing: MODEL with the quantized weights decoded and rounded to
MODEL's own type. Perplexity, KL divergence to MODEL and top-1 agreement are nearplane's, computed
in float32: in bfloat16 a model already differs from itself in float32 by more than 2 % of top-1.
With CHECKPOINT "-" MODEL is compared with itself. `--remember` keeps in FILE what MODEL's body
gave, for the next checkpoint. Prints one JSON line.

Bits are counted from the files: everything stored for the quantized linear layers, per weight.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from decode import decode, gguf_types, idle_bpw, stored_bpw
from torch import nn

import nearplane as npl
from nearplane.evaluate.bits import count_bytes, is_checkpoint
from nearplane.evaluate.divergence import divergence
from nearplane.evaluate.perplexity import WindowOptions, Windows, batches, text_windows
from nearplane.model.open_model import open_model


def remember_(model: Any, windows: Windows, file: Path | None) -> None:
    """Let the body give again what it gives for the windows, read from or written to `file`."""
    body = model.base_model
    if file is not None and file.exists():
        given = torch.load(file, weights_only=False)
    else:
        with torch.no_grad():
            parts = batches(windows)
            given = {key(part): body(input_ids=part, use_cache=False) for part in parts}
        if file is not None:
            torch.save(given, file)

    own = type(body).forward

    def forward(self: nn.Module, input_ids: torch.Tensor, **options: Any) -> Any:
        found = given.get(key(input_ids))
        # some tokens only tell how the head is called
        return own(self, input_ids=input_ids, **options) if found is None else found

    body.__class__ = type("Remembering", (type(body),), {"forward": forward})


def key(tokens: torch.Tensor) -> str:
    """Return what tells one batch of tokens from another."""
    return str(tokens.tolist())


def opened(model: str, checkpoint: str) -> tuple[Any, dict[str, Any]]:
    """Return the model that a checkpoint stores, and what its files say of its bits."""
    if checkpoint == "-":
        return open_model(model).model, {"bpw": 16.0}
    if is_checkpoint(checkpoint):
        bits = count_bytes(Path(checkpoint))
        whole = npl.load(checkpoint, dequantize=True)
        return whole, {"bpw": bits.bpw, "weights": bits.weights}
    found = open_model(model).model
    dense = decode(checkpoint)
    state = found.state_dict()
    changed = {name for name, tensor in dense.items() if put_(state[name], tensor)}
    weights = sum(dense[name].numel() for name in changed)
    said = {"bpw": stored_bpw(checkpoint), "weights": weights, "idle_bpw": idle_bpw(checkpoint)}
    return found, said | {"types": gguf_types(checkpoint)}


def computing(model: Any, dtype: torch.dtype) -> Any:
    """Return the model with its parameters as `dtype`; buffers, as angles, keep their own."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def put_(place: torch.Tensor, value: torch.Tensor) -> bool:
    """Copy `value`, whose rows may be folded, to `place`; return whether that changed anything."""
    before = place.clone()
    place.copy_(value.view_as(place))
    return not torch.equal(before, place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("checkpoint")
    parser.add_argument("text")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--arithmetic", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--remember", type=Path)
    args = parser.parse_args()
    cut = WindowOptions(context=args.context, windows=args.windows)
    source = open_model(args.model)
    windows = text_windows(args.text, source.tokenizer, cut)
    dtype = getattr(torch, args.arithmetic)
    reference = computing(source.model, dtype)
    remember_(reference, windows, args.remember)
    model, said = opened(args.model, args.checkpoint)
    found = divergence(computing(model, dtype), reference, windows, cut)
    scores = {"perplexity": found.model.perplexity, "kl": found.kl, "top1": found.top1}
    print(json.dumps({**said, **scores, "tokens": found.tokens}), flush=True)


if __name__ == "__main__":
    main()

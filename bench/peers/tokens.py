"""Cut the calibration text and its tokens, the same for nearplane and every peer.

    tokens.py MODEL TEXT OUT.safetensors OUT.txt [--sequences 32] [--length 512]

OUT.safetensors holds "tokens", the first tokens of TEXT, one sequence after the other, each opened
by the beginning-of-sequence token if the tokenizer opens texts with it: what `nearplane quantize`
would make of OUT.txt, the shortest prefix of whole lines that contains them.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from nearplane.walk.calibration import opening_token, pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("tokens_out", type=Path)
    parser.add_argument("text_out", type=Path)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    args = parser.parse_args()

    text = args.text.read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    bos = opening_token(tokenizer)
    body = args.length - (bos is not None)
    count = args.sequences * body
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    if len(whole["input_ids"]) < count:
        raise ValueError(f"{args.text} has {len(whole['input_ids'])} tokens, {count=} are needed")
    end = text.find("\n", whole["offset_mapping"][count - 1][1])
    prefix = text if end < 0 else text[: end + 1]
    ids = tokenizer(prefix, add_special_tokens=False, verbose=False)["input_ids"][:count]
    if ids != whole["input_ids"][:count]:
        raise ValueError("the tokens of the prefix differ from those of the whole text")

    # exactly as many as are asked for, so that there is no choice to make
    tokens = pack(torch.tensor(ids, dtype=torch.int64), body, args.sequences, bos).contiguous()
    save_file({"tokens": tokens}, args.tokens_out)
    args.text_out.write_text(prefix, encoding="utf-8")


if __name__ == "__main__":
    main()

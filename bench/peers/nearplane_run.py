"""Quantize a model with one of nearplane's methods.

    nearplane_run.py MODEL TOKENS.safetensors OUT RECIPE

RECIPE is JSON, as `Method.recipe` gives it: {"method": "hptq", "bpw": 3.125}. Embedding and output
head stay as they are, as the other tools leave them. Prints one JSON line with the seconds of the
run after the imports, and what the report says of the error.
"""

import argparse
import json
import time

import torch
from safetensors.torch import load_file

import nearplane as npl
from nearplane.methods import from_recipe
from nearplane.model.selection import Rules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("tokens", help='safetensors file with int "tokens" (sequences, length)')
    parser.add_argument("out")
    parser.add_argument("recipe")
    args = parser.parse_args()
    method = from_recipe(json.loads(args.recipe))
    tokens: torch.Tensor = load_file(args.tokens)["tokens"]
    started = time.perf_counter()
    kept = {"sequences": len(tokens), "rules": Rules(keep=("embedding", "head"))}
    report = npl.quantize(args.model, args.out, method, tokens, **kept)
    seconds = {"quantize": round(time.perf_counter() - started, 3)}
    said = {key: report[key] for key in ("relative_loss", "loss_over_bound")}
    print(json.dumps({"peer": "nearplane", "seconds": seconds, **said}), flush=True)


if __name__ == "__main__":
    main()

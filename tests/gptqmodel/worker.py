"""Run in GPTQModel's environment: worker.py DIRECTORY TOKENS.npy ANSWERS.safetensors.

Answers: the weight of each layer as it is multiplied by, (out, in), and "logits", in float16.
"""

import sys

import numpy as np
import torch
from gptqmodel import BACKEND, GPTQModel
from safetensors.torch import save_file


def main() -> None:
    directory, tokens, answers = sys.argv[1:]
    # its default bfloat16 would round the float16 scales of the file a second time
    options = {"device": "cpu", "backend": BACKEND.TORCH, "dtype": torch.float16}
    model = GPTQModel.load(directory, **options).model
    found = {
        f"{name}.weight": module.dequantize_weight().T.contiguous()
        for name, module in model.named_modules()
        if hasattr(module, "dequantize_weight")
    }
    with torch.no_grad():
        found["logits"] = model(torch.from_numpy(np.load(tokens))).logits.contiguous()
    save_file(found, answers)


if __name__ == "__main__":
    main()

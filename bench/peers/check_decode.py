"""Compare decode.py with the peer that wrote the checkpoint; runs inside the peer's environment.

    check_decode.py FOLDER

Lets the peer dequantize every linear by its own code and counts the weights that differ from
`decode`, after one rounding to the peer's floating-point type. Exit status 1 if any does.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch  # noqa: E402
from decode import decode  # noqa: E402
from torch import Tensor  # noqa: E402


def gptqmodel_weights(folder: str) -> dict[str, Tensor]:
    """Return what GPTQModel's plain torch kernel multiplies with, (out, in) per linear."""
    from gptqmodel import BACKEND, GPTQModel

    # its default bfloat16 would round the float16 scales of the file a second time
    model = GPTQModel.load(folder, device="cpu", backend=BACKEND.TORCH, dtype=torch.float16).model
    return {
        f"{name}.weight": module.dequantize_weight().T
        for name, module in model.named_modules()
        if hasattr(module, "dequantize_weight")
    }


def llmcompressor_weights(folder: str) -> dict[str, Tensor]:
    """Return the weights that compressed-tensors decompresses while transformers loads."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    config = CompressedTensorsConfig(run_compressed=False)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    return {
        f"{name}.weight": module.weight.detach()
        for name, module in model.named_modules()
        if getattr(module, "quantization_scheme", None) is not None
    }


def autoround_weights(folder: str) -> dict[str, Tensor]:
    """Return what AutoRound's plain torch layers give for every unit vector."""
    from transformers import AutoModelForCausalLM, AutoRoundConfig

    config = AutoRoundConfig(backend="torch_zp")
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32
    )
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "qweight")}
    with torch.no_grad():
        return {f"{n}.weight": m(torch.eye(m.infeatures)).T.half() for n, m in layers.items()}


def main() -> int:
    folder = sys.argv[1]
    config = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
    weights = {
        "gptq": gptqmodel_weights,
        "compressed-tensors": llmcompressor_weights,
        "auto-round": autoround_weights,
    }
    theirs = weights[config["quant_method"]](folder)
    ours = decode(folder)
    different = {
        name: int((ours[name].to(tensor.dtype) != tensor).sum()) for name, tensor in theirs.items()
    }
    dtypes = {str(tensor.dtype) for tensor in theirs.values()}
    total = sum(tensor.numel() for tensor in theirs.values())
    print(
        f"{len(theirs)} linears, {total} weights in {sorted(dtypes)}: "
        f"{sum(different.values())} differ in {sum(map(bool, different.values()))} linears"
    )
    return int(any(different.values()) or not theirs)


if __name__ == "__main__":
    sys.exit(main())

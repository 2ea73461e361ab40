"""Decode a quantized checkpoint of a peer into plain dense weights.

    python bench/peers/decode.py FOLDER OUT [--dtype float32]

FOLDER holds what GPTQModel (GPTQ v1 or v2) or llm-compressor (compressed-tensors
"pack-quantized") saved; OUT becomes a dense Hugging Face folder that any evaluator reads.
Written from the formats, without importing the peers.

theirs = ours: scales, weight_scale = step; qzeros, weight_zero_point = zero; qweight,
weight_packed = code; value = step * (code - zero).
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def decode(folder: str | Path) -> dict[str, Tensor]:
    """Return the dense state dict of a checkpoint; quantized weights in exact float32.

    step * (code - zero) has at most 11 + 8 significant bits, so float32 loses nothing;
    a peer that multiplies in float16 or bfloat16 gets the same value, rounded once.
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    tensors = _load(folder)
    if config["quant_method"] == "gptq":
        return _decode_gptq(tensors, config)
    if config["quant_method"] == "compressed-tensors":
        return _decode_compressed_tensors(tensors, config)
    raise ValueError(f"unknown quant_method={config['quant_method']!r} in {folder}")


def unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the first `count` codes of each row of int32 words.

    Code i is the `bits` bits from bit i*bits on, lowest first, and may straddle two words;
    both formats pack 3 bits so: 32 codes in 3 words.
    """
    words = np.ascontiguousarray(words).view(np.uint32).astype(np.uint64)
    if words.shape[1] * 32 < count * bits:
        raise ValueError(f"{words.shape[1]} words cannot hold {count=} codes of {bits=}")
    words = np.pad(words, ((0, 0), (0, 1)))
    position = np.arange(count) * bits
    word, offset = position // 32, (position % 32).astype(np.uint64)
    pair = words[:, word] | words[:, word + 1] << np.uint64(32)
    return ((pair >> offset) & np.uint64(2**bits - 1)).astype(np.int32)


def gptq_weight(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor, bits: int, stored_minus: int
) -> Tensor:
    """Return the (out, in) weight of one GPTQ linear; `stored_minus` is 1 in v1, 0 in v2.

    qweight is packed along the inputs, (in * bits / 32, out); qzeros along the outputs,
    (groups, out * bits / 32); scales are (groups, out); g_idx names the group of each input.
    """
    columns, rows = g_idx.numel(), scales.shape[1]
    code = torch.from_numpy(unpack(qweight.numpy().T, bits, columns))
    # v1 stores zero - 1 and its reader adds 1; the symmetric zero 2**(bits-1) never overflows
    zero = torch.from_numpy(unpack(qzeros.numpy(), bits, rows)) + stored_minus
    group = g_idx.long()
    return scales.float().T[:, group] * (code - zero.T[:, group])


def packed_weight(
    packed: Tensor, scale: Tensor, shape: Tensor, bits: int, zero_point: Tensor | None = None
) -> Tensor:
    """Return the (out, in) weight of one pack-quantized linear.

    Codes are stored plus 2**(bits-1), packed along the inputs; scale is (out, groups), and so is
    zero_point, which asymmetric files pack along the outputs.
    """
    rows, columns = shape.tolist()
    groups = scale.shape[1]
    half = 2 ** (bits - 1)
    code = torch.from_numpy(unpack(packed.numpy(), bits, columns)) - half
    zero = torch.zeros(rows, groups, dtype=torch.int32)
    if zero_point is not None:
        zero = torch.from_numpy(unpack(zero_point.numpy().T, bits, rows).T.copy()) - half
    if columns % groups:
        raise ValueError(f"{columns=} is not a multiple of {groups=}")
    group = torch.arange(columns) // (columns // groups)
    return scale.float()[:, group] * (code - zero[:, group])


def _decode_gptq(tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    if config.get("dynamic"):
        raise ValueError("GPTQ checkpoints with bits that differ by layer are not decoded")
    minus = {"gptq": 1, "gptq_v2": 0}[config.get("checkpoint_format", "gptq")]
    parts = ("qweight", "qzeros", "scales", "g_idx")
    dense = {}
    for name, tensor in tensors.items():
        prefix, _, part = name.rpartition(".")
        if part == "qweight":
            fields = [tensors[f"{prefix}.{field}"] for field in parts]
            dense[f"{prefix}.weight"] = gptq_weight(*fields, config["bits"], minus)
        elif part not in parts:
            dense[name] = tensor
    return dense


def _decode_compressed_tensors(tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    if config["format"] != "pack-quantized" or len(config["config_groups"]) != 1:
        raise ValueError(f"only one group of pack-quantized is decoded, not {config['format']!r}")
    (scheme,) = config["config_groups"].values()
    if scheme["weights"].get("actorder") == "group":
        raise ValueError("activation order with moving groups (weight_g_idx) is not decoded")
    bits = scheme["weights"]["num_bits"]
    dense = {}
    for name, tensor in tensors.items():
        prefix, _, part = name.rpartition(".")
        if part == "weight_packed":
            dense[f"{prefix}.weight"] = packed_weight(
                tensor,
                tensors[f"{prefix}.weight_scale"],
                tensors[f"{prefix}.weight_shape"],
                bits,
                tensors.get(f"{prefix}.weight_zero_point"),
            )
        elif part not in ("weight_scale", "weight_shape", "weight_zero_point"):
            dense[name] = tensor
    return dense


def _load(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no safetensors file in {folder}")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def stored_bpw(folder: str | Path) -> float:
    """Return the bits that all parts of the quantized linears take, per weight."""
    tensors = _load(Path(folder))
    marks = (".qweight", ".weight_packed")
    linears = {name.rpartition(".")[0] for name in tensors if name.endswith(marks)}
    stored = sum(t.nbytes for name, t in tensors.items() if name.rpartition(".")[0] in linears)
    return 8 * stored / sum(_weights(tensors, prefix) for prefix in linears)


def _weights(tensors: dict[str, Tensor], prefix: str) -> int:
    if f"{prefix}.weight_shape" in tensors:
        return int(tensors[f"{prefix}.weight_shape"].prod())
    return tensors[f"{prefix}.g_idx"].numel() * tensors[f"{prefix}.scales"].shape[1]


def save_dense(folder: str | Path, out: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the decoded checkpoint as a dense Hugging Face folder, tokenizer included."""
    folder, out = Path(folder), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    dense = {name: tensor.to(dtype).contiguous() for name, tensor in decode(folder).items()}
    save_file(dense, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    config["dtype"] = str(dtype).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for pattern in ("tokenizer*", "special_tokens_map.json", "chat_template*"):
        for file in folder.glob(pattern):
            shutil.copy(file, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    args = parser.parse_args()
    save_dense(args.folder, args.out, getattr(torch, args.dtype))
    print(f"{args.out}: dense {args.dtype}, {stored_bpw(args.folder):.4f} bits per linear weight")


if __name__ == "__main__":
    main()

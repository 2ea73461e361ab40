"""Decode a quantized checkpoint of a peer into plain dense weights.

    python bench/peers/decode.py FOLDER OUT [--dtype float32]

FOLDER holds what GPTQModel (GPTQ v1 or v2), AutoRound (packed like GPTQ v1), llm-compressor
(compressed-tensors "pack-quantized") or llama.cpp (the linear layers in a GGUF file) saved; OUT
becomes a dense Hugging Face folder that any evaluator reads. Written from the formats, without
importing the peers; blocks of a GGUF file are read by the package gguf.

theirs = ours: scales, weight_scale = step; qzeros, weight_zero_point = zero; qweight,
weight_packed = code; value = step * (code - zero); blk.0.ffn_up = model.layers.0.mlp.up_proj.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

# llama.cpp's names of the linear layers of a block
GGUF_LINEARS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def decode(folder: str | Path) -> dict[str, Tensor]:
    """Return the dense state dict of a checkpoint; quantized weights in exact float32.

    step * (code - zero) has at most 11 + 8 significant bits, so float32 loses nothing;
    a peer that multiplies in float16 or bfloat16 gets the same value, rounded once.
    Of a GGUF file these are the quantized weights alone.
    """
    folder = Path(folder)
    if files := _gguf_files(folder):
        return _decode_gguf(files)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    tensors = _load(folder)
    if config["quant_method"] == "gptq":
        return _decode_gptq(tensors, config)
    if config["quant_method"] == "compressed-tensors":
        return _decode_compressed_tensors(tensors, config)
    if config["quant_method"] == "auto-round":
        return _decode_gptq(tensors, _as_gptq(config))
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
            fields = [tensors.get(f"{prefix}.{field}") for field in parts]
            if fields[-1] is None:
                columns = tensor.shape[0] * 32 // config["bits"]
                fields[-1] = torch.arange(columns) // config["group_size"]
            dense[f"{prefix}.weight"] = gptq_weight(*fields, config["bits"], minus)
        elif part not in parts:
            dense[name] = tensor
    return dense


def _as_gptq(config: dict) -> dict:
    """Return AutoRound's configuration as the GPTQ v1 one that it packs by, but without g_idx."""
    if config["packing_format"] != "auto_round:auto_gptq":
        raise ValueError(f"AutoRound's packing {config['packing_format']!r} is not decoded")
    if any("bits" in layer for layer in (config.get("extra_config") or {}).values()):
        raise ValueError("AutoRound checkpoints with bits that differ by layer are not decoded")
    return {"bits": config["bits"], "group_size": config["group_size"]}


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


def _gguf_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.gguf"))


def _gguf_tensors(files: list[Path]) -> dict:
    """Return gguf's tensors of the linear layers by the names that transformers gives them."""
    from gguf import GGUFReader

    ours = {theirs: mine for mine, theirs in GGUF_LINEARS.items()}
    found = {}
    for tensor in (tensor for file in files for tensor in GGUFReader(file).tensors):
        block, _, kind = tensor.name.removeprefix("blk.").removesuffix(".weight").partition(".")
        if kind in ours:
            found[f"model.layers.{block}.{ours[kind]}.weight"] = tensor
    return found


def _decode_gguf(files: list[Path]) -> dict[str, Tensor]:
    from gguf import dequantize

    tensors = _gguf_tensors(files).items()
    return {
        name: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        for name, tensor in tensors
    }


def gguf_types(folder: str | Path) -> dict[str, int]:
    """Return the weights that a GGUF file stores in each of llama.cpp's types."""
    counts: dict[str, int] = {}
    for tensor in _gguf_tensors(_gguf_files(Path(folder))).values():
        name = tensor.tensor_type.name
        counts[name] = counts.get(name, 0) + int(tensor.n_elements)
    return counts


def stored_bpw(folder: str | Path) -> float:
    """Return the bits that all parts of the quantized linears take, per weight."""
    if files := _gguf_files(Path(folder)):
        linears = _gguf_tensors(files).values()
        return 8 * sum(int(t.n_bytes) for t in linears) / sum(int(t.n_elements) for t in linears)
    tensors = _load(Path(folder))
    parts = _parts_of_linears(tensors)
    return 8 * sum(t.nbytes for t in parts.values()) / _weights(folder, tensors)


def idle_bpw(folder: str | Path) -> float:
    """Return the part of `stored_bpw` that says nothing: zeros of symmetric codes, and g_idx."""
    if _gguf_files(Path(folder)):
        return 0.0
    tensors = _load(Path(folder))
    idle = ("qzeros", "g_idx", "weight_zero_point", "weight_shape")
    parts = _parts_of_linears(tensors).items()
    return 8 * sum(t.nbytes for n, t in parts if n.endswith(idle)) / _weights(folder, tensors)


def _parts_of_linears(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    marks = (".qweight", ".weight_packed")
    linears = {name.rpartition(".")[0] for name in tensors if name.endswith(marks)}
    return {name: t for name, t in tensors.items() if name.rpartition(".")[0] in linears}


def _weights(folder: str | Path, tensors: dict[str, Tensor]) -> int:
    """Return the number of quantized weights."""
    config = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
    packed = sum(t.numel() for name, t in tensors.items() if name.endswith(".qweight"))
    shapes = [t for name, t in tensors.items() if name.endswith(".weight_shape")]
    return packed * 32 // config.get("bits", 32) + sum(int(shape.prod()) for shape in shapes)


def save_uncompressed(
    folder: str | Path, out: str | Path, dtype: torch.dtype = torch.float32
) -> None:
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
    save_uncompressed(args.folder, args.out, getattr(torch, args.dtype))
    print(f"{args.out}: dense {args.dtype}, {stored_bpw(args.folder):.4f} bits per linear weight")


if __name__ == "__main__":
    main()

"""Tiny random models, and checkpoints of them with weights rounded and packed directly."""

import copy
import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from nearplane import codes, types
from nearplane.export import checkpoint_format as fmt
from nearplane.export.checkpoint_writer import SHARD_BYTES, CheckpointWriter
from nearplane.export.uncompressed import without_weights
from nearplane.types import LayerReport, Outliers

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61}
GATED = {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
IDS = torch.arange(24).reshape(2, 12)


def llama(tied: bool = False) -> PreTrainedModel:
    return _made(LlamaForCausalLM, LlamaConfig(**SIZES, **GATED, tie_word_embeddings=tied))


def llama_tied() -> PreTrainedModel:
    return llama(tied=True)


def qwen2() -> PreTrainedModel:
    model = _made(Qwen2ForCausalLM, Qwen2Config(**SIZES, **GATED))
    return _with_random_biases(model)


def gpt2() -> PreTrainedModel:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=64)
    return _with_random_biases(_made(GPT2LMHeadModel, config))


FAMILIES = {"llama": llama, "llama_tied": llama_tied, "qwen2": qwen2, "gpt2": gpt2}


@dataclass
class Packed:
    """A layer's record and the value it stands for."""

    record: Tensor
    value: Tensor
    report: LayerReport


def pack_layer(name: str, weight: Tensor, seed: int) -> Packed:
    """Round `weight` (out, in) in one of three stored forms, chosen by `seed`."""
    rows, columns = weight.shape
    group_size, coder, outliers = columns, codes.Huffman(), None
    if seed % 3 == 0:
        step = torch.full((1, 1), float(weight.std()) / 3)
    elif seed % 3 == 1:
        group_size, coder = 10, codes.Dense(4)  # the last group is short
        step = weight.std() / 2 * torch.ones(rows, -(-columns // group_size))
        outliers = _outliers(rows, columns, seed)
    else:
        step = (weight.std(0, keepdim=True) / 3).clamp_min(1e-3)
    step = codes.round_step(step)
    code = (weight / types.spread(step, group_size, columns)).round().clamp(-8, 7).int()
    record, _ = codes.pack(code, step, group_size, outliers, coder)
    value = types.value(code, step, group_size, outliers)
    return Packed(record, value, report(name, weight, value, len(record)))


def report(name: str, weight: Tensor, value: Tensor, stored_bytes: int) -> LayerReport:
    rows, columns = weight.shape
    loss = float((weight - value).square().sum())
    return LayerReport(
        name=name,
        method="rtn",
        rows=rows,
        columns=columns,
        stored_bytes=stored_bytes,
        bpw=8 * stored_bytes / weight.numel(),
        code_bpw=1.0,
        loss=loss,
        damped_loss=loss,
        energy=float(weight.square().sum()),
        bound=2 * loss,
        void="",
        weight_error=loss,
        tokens=100,
        dropped_tokens=0,
        dead_columns=0,
        seconds=0.25,
    )


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the layers that the tests compress: all linear ones but the head."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name != "lm_head"
    }


def write(model: PreTrainedModel, out: Path, max_shard_bytes: int = SHARD_BYTES) -> PreTrainedModel:
    """Write a checkpoint of `model`; return the dense model that holds the decoded values."""
    dense = copy.deepcopy(model)
    packed = {}
    for seed, (name, layer) in enumerate(linear_layers(dense).items()):
        transposed = isinstance(layer, Conv1D)
        weight = layer.weight.detach()
        packed[name] = pack_layer(name, weight.T if transposed else weight, seed)
        value = packed[name].value
        layer.weight.data.copy_(value.T if transposed else value)
    with CheckpointWriter(out, max_shard_bytes) as writer:
        for name, part in packed.items():
            writer.add(name + fmt.RECORD, part.record)
        for name, tensor in without_weights(model.state_dict(), packed, model).items():
            writer.add(name, tensor)
        writer.finish(config_of(model, packed), {"report.json": {"a": 1}, "notes/a.txt": b"hello"})
    return dense


def config_of(model: PreTrainedModel, packed: dict[str, Packed]) -> dict:
    model.config.architectures = [type(model).__name__]
    recipe = {"method": "rtn", "calibration": {"sequences": 0}}
    quantization = fmt.quantization_config(recipe, [p.report for p in packed.values()])
    return model.config.to_dict() | {"quantization_config": quantization}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def _outliers(rows: int, columns: int, seed: int) -> Outliers:
    generator = torch.Generator().manual_seed(seed)
    column = torch.randint(columns, (rows,), generator=generator, dtype=torch.int32)
    value = torch.randn(rows, generator=generator).half()
    return Outliers(torch.arange(rows + 1, dtype=torch.int32), column, value)


def _made(kind: type[PreTrainedModel], config: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return kind(config).eval()


def _with_random_biases(model: PreTrainedModel) -> PreTrainedModel:
    for layer in linear_layers(model).values():
        if layer.bias is not None:
            layer.bias.data.normal_()
    return model


def copies(module: nn.Module) -> list[nn.Module]:
    """Return a module copied, pickled, and written and read by torch."""
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    read = torch.load(stream, weights_only=False)
    return [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), read]

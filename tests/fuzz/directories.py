"""Directories of which some files are damaged: checkpoints, and models to be quantized."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from nearplane.cli import verify
from nearplane.evaluate.verify import contradictions
from nearplane.export import checkpoint_format as fmt
from nearplane.export import checksums, load
from nearplane.export.checkpoint_reader import check_layers, open_checkpoint
from nearplane.export.import_checkpoint import import_checkpoint
from nearplane.export.packed_layers import PACKED
from nearplane.model.open_model import open_model
from nearplane.types import NearplaneError
from tests.cli import tiny as tiny_model
from tests.export import tiny
from tests.fuzz.mutate import (
    assert_one_sentence,
    damaged,
    damaged_json,
    damaged_safetensors,
    json_text,
)

Files = dict[str, bytes]
JSON = (fmt.CONFIG, fmt.INDEX)
GGUF_HEADER = 9000  # bytes


def written_checkpoint(place: Path, shards: bool) -> Path:
    """Write a small checkpoint with a tokenizer."""
    model = tiny.llama()
    tiny.write(model, place, 20_000 if shards else 10**9)
    tiny_model.tokenizer(bos=True).save_pretrained(place)
    (place / checksums.SUMS).unlink()
    hashes = {name: checksums.file_hash(place / name) for name in checksums.listed_files(place)}
    (place / checksums.SUMS).write_bytes(checksums.sums_text(hashes))
    return place


def written_model(place: Path, shards: bool) -> Path:
    """Write a small model that is not quantized."""
    tiny_model.model().save_pretrained(place, max_shard_size="60KB" if shards else "1GB")
    tiny_model.tokenizer(bos=True).save_pretrained(place)
    return place


def written_packed(place: Path, method: str) -> Path:
    """Write a checkpoint of two layers as another package packs them."""
    place.mkdir()
    draws = torch.Generator().manual_seed(0)

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31, shape, generator=draws).int()

    def layer(name: str) -> dict[str, torch.Tensor]:
        scales = torch.rand(32, 2, generator=draws).half() + 0.5
        if method == "compressed-tensors":
            if name == "v_proj":
                whole = torch.randint(-8, 8, (32, 64), generator=draws).to(torch.int8)
                return {"weight": whole, "weight_scale": torch.rand(1, generator=draws)}
            shape = torch.tensor([32, 64])
            return {"weight_packed": words(32, 8), "weight_scale": scales, "weight_shape": shape}
        zeros, along = torch.full((2, 4), 0x77777777), (64, 4) if method == "awq" else (8, 32)
        parts = {"qweight": words(*along), "qzeros": zeros.int(), "scales": scales.T.contiguous()}
        return parts | ({"g_idx": torch.arange(64).int() // 32} if method == "gptq" else {})

    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 40}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    tensors = model.state_dict()
    for name in ("k_proj", "v_proj"):
        whole = f"model.layers.0.self_attn.{name}"
        del tensors[f"{whole}.weight"]
        tensors |= {f"{whole}.{part}": tensor for part, tensor in layer(name).items()}
    save_file(tensors, place / "model.safetensors")
    settings: dict = {"quant_method": method, "bits": 4, "group_size": 32, "version": "gemm"}
    if method == "compressed-tensors":
        weights = {"num_bits": 4, "type": "int", "group_size": 32}
        groups = {"group_0": {"targets": ["Linear"], "weights": weights, "format": PACKED}}
        weights = {"num_bits": 4, "type": "int", "strategy": "tensor", "symmetric": True}
        one = {"targets": ["re:.*v_proj"], "weights": weights, "format": "int-quantized"}
        groups["group_1"] = one
        settings |= {"format": "mixed-precision", "config_groups": groups}
    config = model.config.to_dict() | {"quantization_config": settings}
    (place / fmt.CONFIG).write_text(json.dumps(config))
    return place


class Damage:
    """A directory that is whole between cases.

    - `names`: the files that are damaged, one or two at a time.
    """

    def __init__(self, directory: Path, names: Iterable[str]):
        self.directory = directory
        self.whole: Files = {
            path.relative_to(directory).as_posix(): path.read_bytes()
            for path in directory.rglob("*")
            if path.is_file()
        }
        self.names = sorted(name for name in names if name in self.whole)

    def draw(self, random: Random) -> Files:
        files: Files = {}
        while not files:
            some = random.sample(self.names, min(len(self.names), random.choice([1, 1, 1, 2])))
            made = {name: damaged_file(name, self.whole[name], random) for name in some}
            files = {name: c for name, c in made.items() if c != self.whole[name]}
        return files

    def put(self, files: Files) -> None:
        for name, content in files.items():
            (self.directory / name).write_bytes(content)

    def restore(self, files: Files) -> None:
        self.put({name: self.whole[name] for name in files if name in self.whole})


def damaged_file(name: str, content: bytes, random: Random) -> bytes:
    """Return the file's content with damage that suits its kind."""
    if name.endswith(".safetensors"):
        return damaged_safetensors(content, random)
    if name.endswith(".gguf"):
        # what follows are weights
        return damaged(content[:GGUF_HEADER], random) + content[GGUF_HEADER:]
    if name.endswith(".json") and random.random() < 0.9:
        return json_text(damaged_json(json.loads(content), random), random)
    return damaged(content, random)


def read_packed(folder: Path) -> None:
    """Import a checkpoint of another package: what is written is whole, or nothing is there."""
    out = folder.with_name(f"{folder.name}-imported")
    shutil.rmtree(out, ignore_errors=True)
    try:
        import_checkpoint(folder, out)
    except NearplaneError:
        assert not out.exists()
        raise
    assert not check_layers(out)


def read_all(directory: Path) -> None:
    """Do what `nearplane verify` and `inspect` do with a checkpoint, all but loading it."""
    problems = check_layers(directory)
    for problem in problems:
        assert_one_sentence(NearplaneError(problem))
    checkpoint = open_checkpoint(directory)
    for name, entry in checkpoint.layers.items():
        list(contradictions(name, entry))
    for name in checkpoint.file_of:
        try:
            checkpoint.tensor(name)
        except NearplaneError:
            pass
    with contextlib.redirect_stdout(io.StringIO()):
        verify.inspect(str(directory), as_json=True)
        verify.inspect(str(directory), as_json=False)
    if problems:
        raise NearplaneError(problems[0])


def read_sums(directory: Path) -> None:
    """Compare the sums; they differ after every damage."""
    problems = checksums.verify_sums(directory)
    assert problems, "a damaged file was not noticed"
    raise NearplaneError(problems[0])


def load_model(directory: Path) -> None:
    model = load.load(directory)
    assert model is not None


def load_tokenizer(directory: Path) -> None:
    load.load_tokenizer(directory)


def open_source_model(directory: Path) -> None:
    open_model(directory)


class DirectoryTarget:
    """Damage some files, do something with the directory, and mend them again."""

    def __init__(self, damage: Damage, use: Callable[[Path], None]):
        self.damage = damage
        self.use = use

    def draw(self, random: Random) -> Files:
        return self.damage.draw(random)

    def check(self, files: Files) -> None:
        self.damage.put(files)
        try:
            self.use(self.damage.directory)
        finally:
            self.damage.restore(files)


def files_of(directory: Path, *patterns: str) -> list[str]:
    return [path.name for pattern in patterns for path in directory.glob(pattern)]


def fresh(place: Path, name: str) -> Path:
    path = place / name
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(place, exist_ok=True)
    return path


def written_gguf(path: Path) -> Path:
    """Write a GGUF file of a small Llama with a tokenizer."""
    import gguf

    model = tiny_model.model()
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(config.vocab_size)
    words = tiny_model.tokenizer(bos=True).get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(words, key=words.__getitem__))
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in state.items():
        stored = names.get_name(name, try_suffixes=(".weight",))
        if name != "lm_head.weight":
            writer.add_tensor(stored, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

"""Time llama.cpp on models of random weights; runs inside llama-cpp-python's environment.

Serves bench/cpu.py and bench/generate.py through a pipe (see pipe.py):

- `make` writes a GGUF file, quantized by llama.cpp's own function: all layers in one type. One
  block is quantized; the others are copies of it, in memory of their own once they are loaded.
- `load` reads one, as llama.cpp does by default: some types are rearranged for the processor then.
- `forward` times one evaluation of a batch of tokens, `generate` greedy decoding.
"""

import ctypes
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from pipe import serve

FILE_TYPES = {"Q2_K": "Q2_K", "Q3_K": "Q3_K_S", "Q4_0": "Q4_0", "Q4_K": "Q4_K_S"}
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


@dataclass
class Loaded:
    """A model, its context, and the tokens that it may see."""

    model: Any
    context: Any
    vocabulary: int


loaded: dict[str, Loaded] = {}


def make(path: str, kind: str, shape: dict, blocks: int, vocabulary: int, ends: str = "") -> float:
    """Write a model unless it is there; return the bits per weight of its linear layers.

    `ends`, a type of llama.cpp, is that of the embedding and of the output layer, else `kind`.
    """
    final = Path(path)
    if not final.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        half, one = final.with_suffix(".f16"), final.with_suffix(".one")
        _write_half(half, shape, vocabulary)
        _quantize(half, one, kind, ends)
        half.unlink()
        _repeat(one, final.with_suffix(".part"), shape, blocks, vocabulary)
        one.unlink()
        final.with_suffix(".part").rename(final)
    linear = [t for t in gguf.GGUFReader(final).tensors if t.name.startswith("blk.")]
    linear = [tensor for tensor in linear if len(tensor.shape) == 2]
    return 8 * sum(int(t.n_bytes) for t in linear) / sum(int(t.n_elements) for t in linear)


def load(name: str, path: str, context: int) -> None:
    params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = context
    made = llama_cpp.llama_init_from_model(model, settings)
    if not made:
        raise RuntimeError(f"llama.cpp does not load {Path(path).name}")
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    loaded[name] = Loaded(model, made, llama_cpp.llama_vocab_n_tokens(vocabulary))


def forward(name: str, batch: int, threads: int) -> float:
    """Return the seconds of one evaluation of `batch` tokens, after another one like it."""
    context = loaded[name].context
    llama_cpp.llama_set_n_threads(context, threads, threads)
    for _ in range(2):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        seconds = _evaluate(context, list(range(1, batch + 1)), 0, True)
    return seconds


def generate(name: str, prompt: int, tokens: int, threads: int) -> list[float]:
    """Return the seconds of the prompt and of every token after the first, chosen greedily."""
    context, vocabulary = loaded[name].context, loaded[name].vocabulary
    llama_cpp.llama_set_n_threads(context, threads, threads)
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
    seconds, given, place = [], list(range(1, prompt + 1)), 0
    for _ in range(tokens):
        started = time.perf_counter()
        _evaluate(context, given, place, False)
        place += len(given)
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        given = [int(np.ctypeslib.as_array(logits, (vocabulary,)).argmax())]
        seconds.append(time.perf_counter() - started)
    return seconds


def memory() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _evaluate(context: Any, tokens: list[int], first: int, every: bool) -> float:
    """Return the seconds of `tokens` at the places from `first` on.

    The last block drops the tokens that no logits are wanted of, all but the last unless `every`.
    """
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for index, token in enumerate(tokens):
        batch.token[index], batch.pos[index] = token, first + index
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        batch.logits[index] = every or index == len(tokens) - 1
    started = time.perf_counter()
    failed = llama_cpp.llama_decode(context, batch)
    llama_cpp.llama_synchronize(context)
    seconds = time.perf_counter() - started
    llama_cpp.llama_batch_free(batch)
    if failed:
        raise RuntimeError(f"llama_decode returned {failed}")
    return seconds


def _quantize(source: Path, out: Path, kind: str, ends: str) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = 2
    params.pure = True
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{FILE_TYPES[kind]}")
    if ends:
        params.output_tensor_type = gguf.GGMLQuantizationType[ends].value
        params.token_embedding_type = params.output_tensor_type
    paths = str(source).encode(), str(out).encode()
    failed = llama_cpp.llama_model_quantize(*paths, ctypes.byref(params))
    if failed:
        raise RuntimeError(f"llama_model_quantize returned {failed}")


def _writer(path: Path, shape: dict, blocks: int, vocabulary: int) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(blocks)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape["hidden"])
    writer.add_feed_forward_length(shape["feed_forward"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_rope_dimension_count(shape["hidden"] // shape["heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")
    return writer


def _write_half(path: Path, shape: dict, vocabulary: int) -> None:
    hidden, ff = shape["hidden"], shape["feed_forward"]
    kv = hidden // shape["heads"] * shape["kv_heads"]
    matrices = {"attn_q": (hidden, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden)}
    matrices |= {"attn_output": (hidden, hidden), "ffn_down": (hidden, ff)}
    matrices |= {"ffn_gate": (ff, hidden), "ffn_up": (ff, hidden)}
    matrices = {f"blk.0.{name}.weight": size for name, size in matrices.items()}
    matrices |= {EMBEDDING: (vocabulary, hidden), OUTPUT: (vocabulary, hidden)}
    writer, random = _writer(path, shape, 1, vocabulary), np.random.default_rng(0)
    for name, size in matrices.items():
        weight = random.standard_normal(size, np.float32) * np.float32(0.02)
        writer.add_tensor(name, weight.astype(np.float16))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))
    _close(writer)


def _repeat(source: Path, out: Path, shape: dict, blocks: int, vocabulary: int) -> None:
    """Write a model of many blocks that are all the one of `source`."""
    writer = _writer(out, shape, blocks, vocabulary)
    for tensor in gguf.GGUFReader(source).tensors:
        first = tensor.name.startswith("blk.0.")
        for block in range(blocks if first else 1):
            name = tensor.name.replace("blk.0.", f"blk.{block}.")
            writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
    _close(writer)


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    llama_cpp.llama_backend_init()
    functions = (make, load, forward, generate, memory)
    serve({function.__name__: function for function in functions})

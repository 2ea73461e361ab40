"""A model twice as large as the memory that it may be quantized in: does the run keep its promise?

    .venv/bin/python bench/memory.py [--hidden 1536 --inner 4096 --blocks 48] [--memory 1.3GB]
    .venv/bin/python bench/memory.py --tiny

A random Llama is written block by block, and quantized in a process of its own; peaks are of that
process: what the system counts as resident, pages of mapped files included. Without --memory, half
of the model's bytes are allowed. Then the same at a tenth of the blocks, with memory for all of it
and with as little as will do: records must be the same.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tiny
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]


def config_of(options: argparse.Namespace, blocks: int) -> dict:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    config |= {"hidden_size": options.hidden, "intermediate_size": options.inner}
    config |= {"num_hidden_layers": blocks, "num_attention_heads": options.hidden // 64}
    config |= {"num_key_value_heads": options.hidden // 64, "vocab_size": options.words}
    return config | {"max_position_embeddings": 4096, "tie_word_embeddings": False}


def write_model(directory: Path, options: argparse.Namespace, blocks: int) -> int:
    """Write a random model a block a file, and return its bytes."""
    directory.mkdir()
    config = config_of(options, blocks)
    (directory / "config.json").write_text(json.dumps(config))
    hidden, inner, words = options.hidden, options.inner, options.words
    draws = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=draws) * columns**-0.5).bfloat16()

    ones = torch.ones(hidden, dtype=torch.bfloat16)
    files = [{"model.embed_tokens.weight": matrix(words, hidden), "model.norm.weight": ones}]
    files[0]["lm_head.weight"] = matrix(words, hidden)
    where, total = {}, 0
    for index in range(-1, blocks):
        tensors = files[0]
        if index >= 0:
            at = f"model.layers.{index}."
            tensors = {f"{at}self_attn.{n}_proj.weight": matrix(hidden, hidden) for n in "qkvo"}
            tensors |= {f"{at}mlp.{n}_proj.weight": matrix(inner, hidden) for n in ("gate", "up")}
            tensors[f"{at}mlp.down_proj.weight"] = matrix(hidden, inner)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{at}{norm}.weight"] = ones.clone()
        name = f"model-{index + 2:05d}.safetensors"
        save_file(tensors, directory / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index_json = {"metadata": {"total_size": total}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index_json))
    return total


def child(options: argparse.Namespace) -> None:
    """Quantize; in a process of its own."""
    from nearplane.cli.quiet import quiet
    from nearplane.methods.method import from_recipe
    from nearplane.pipeline import Watcher, quantize

    quiet()
    torch.set_num_threads(options.threads)
    draws = torch.Generator().manual_seed(1)
    tokens = torch.randint(options.words, (options.sequences, options.length), generator=draws)
    recipe: dict = {"method": options.method, "bpw": 3.125}
    if options.method == "eclq":
        recipe["allocate"] = not options.no_allocate
    method = from_recipe(recipe)
    allowed = options.allowed or None
    watcher = Watcher(says=lambda sentence: print(sentence, flush=True))
    quantize(
        options.model,
        options.out,
        method,
        tokens,
        sequences=options.sequences,
        memory=allowed,
        watcher=watcher,
    )


def measured_throughput(
    model: Path, out: Path, options: argparse.Namespace, allowed: int
) -> tuple[int, float]:
    """Return the peak of a run's resident memory, bytes, and its seconds."""
    command = [sys.executable, __file__, *sys.argv[1:], "--model", str(model), "--out", str(out)]
    command += ["--allowed", str(allowed)]
    started = time.perf_counter()
    run = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    _, status, usage = os.wait4(run.pid, 0)
    if status:
        raise SystemExit("the run failed")
    return usage.ru_maxrss * 1024, time.perf_counter() - started


def records(out: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in sorted(out.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def main() -> None:
    from nearplane.cli.run_settings import bytes_of

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = {"hidden": 1536, "inner": 4096, "blocks": 48, "words": 8000, "threads": 2}
    for name, default in (sizes | {"sequences": 16, "length": 512}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--method", default="eclq")
    parser.add_argument("--memory")
    parser.add_argument("--no-allocate", action="store_true", help="one rate for all, by ECLQ")
    parser.add_argument("--no-twin", action="store_true", help="leave the small comparison out")
    for hidden_option in ("model", "out", "allowed"):
        parser.add_argument(f"--{hidden_option}", help=argparse.SUPPRESS)
    # less than the libraries take cannot be promised
    small = {"hidden": 64, "inner": 128, "blocks": 3, "words": 300, "sequences": 2, "length": 32}
    options = tiny.parse(parser, **small, threads=1, method="hptq", memory="3GB")
    if options.model:
        options.allowed = int(options.allowed)
        return child(options)
    (ROOT / "build").mkdir(exist_ok=True)
    room = Path(tempfile.mkdtemp(dir=ROOT / "build"))
    try:
        size = write_model(room / "large", options, options.blocks)
        allowed = bytes_of("--memory", options.memory) if options.memory else size // 2
        peak, seconds = measured_throughput(room / "large", room / "large-out", options, allowed)
        print(
            f"{options.method}: a model of {size / 1e9:.3f} GB in {allowed / 1e9:.3f} GB: peak "
            f"{peak / 1e9:.3f} GB ({peak / allowed:.2f} of it), {seconds:.0f} s"
        )
        if not options.no_twin:
            write_model(room / "small", options, max(2, options.blocks // 10))
            runs = {}
            for name, bytes_ in (("all", 10**12), ("little", allowed)):
                runs[name] = measured_throughput(room / "small", room / name, options, bytes_)
            all_, little = records(room / "all"), records(room / "little")
            same = all_.keys() == little.keys() and all(all_[n].equal(little[n]) for n in all_)
            print(
                f"a tenth of it: peak {runs['all'][0] / 1e9:.3f} and {runs['little'][0] / 1e9:.3f} "
                f"GB, {runs['all'][1]:.0f} and {runs['little'][1]:.0f} s; records "
                f"{'the same' if same else 'DIFFER'}"
            )
    finally:
        shutil.rmtree(room)


if __name__ == "__main__":
    main()

"""Quantize a model with llm-compressor's GPTQ and save it; runs inside its own environment.

    llmcompressor_run.py MODEL TOKENS.safetensors OUT

Prints one JSON line with the seconds of each phase.

Settings: 3 bits, groups of 64, symmetric, damping 0.01, static activation order, saved in
compressed-tensors' "pack-quantized". Damping and order are llm-compressor's defaults; stated here
so that a new default does not change the comparison. Differs from the defaults: samples are
not shuffled, so that a run repeats.
"""

import argparse
import json
import os
import sys
import time

THREADS = os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

started = time.perf_counter()
import torch  # noqa: E402
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme  # noqa: E402
from datasets import Dataset  # noqa: E402
from llmcompressor import oneshot  # noqa: E402
from llmcompressor.modifiers.gptq import GPTQModifier  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402


def recipe(bits: int, group_size: int, damping: float) -> GPTQModifier:
    """Return the GPTQ modifier for every Linear but lm_head."""
    weights = QuantizationArgs(
        num_bits=bits, type="int", symmetric=True, strategy="group", group_size=group_size
    )
    return GPTQModifier(
        ignore=["lm_head"],
        dampening_frac=damping,
        actorder="static",
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("tokens", help='safetensors file with int "tokens" (sequences, length)')
    parser.add_argument("out")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--damping", type=float, default=0.01)
    args = parser.parse_args()
    torch.set_num_threads(int(THREADS))
    marks = [started, time.perf_counter()]

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    marks.append(time.perf_counter())

    tokens = load_file(args.tokens)["tokens"].tolist()
    samples = {"input_ids": tokens, "attention_mask": [[1] * len(row) for row in tokens]}
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_dict(samples),
        recipe=recipe(args.bits, args.group_size, args.damping),
        max_seq_length=len(tokens[0]),
        num_calibration_samples=len(tokens),
        shuffle_calibration_samples=False,
    )
    marks.append(time.perf_counter())

    model.save_pretrained(args.out, save_compressed=True)
    tokenizer.save_pretrained(args.out)
    marks.append(time.perf_counter())

    phases = ["import", "load", "quantize", "save"]
    seconds = {
        name: round(end - start, 3)
        for name, start, end in zip(phases, marks[:-1], marks[1:], strict=True)
    }
    print(json.dumps({"peer": "llmcompressor", "seconds": seconds, **vars(args)}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()

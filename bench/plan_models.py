"""What four large models would take: hours, and gigabytes in memory and on disk.

    .venv/bin/python bench/plan_models.py [--method eclq] [--bpw 3.125] [--device h100]
        [--memory 256e9]
    .venv/bin/python bench/plan_models.py --tiny

The shapes are those that were published with Llama 3.1 and DeepSeek-V3; a config.json of each is
written to a temporary directory, and no weight is read. Rows for this CPU rest on what one of its
cores is measured to do, rows for the device on the rates that `nearplane plan --device` prints as
its assumptions, and on its memory. Calibrated on 128 x 2048 tokens. Times: as fast as one process
on the device.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nearplane.methods import METHODS
from nearplane.plan.devices import stated_throughput
from nearplane.plan.estimate import Estimate, estimate
from nearplane.plan.survey import survey

COMMON = {"dtype": "bfloat16", "tie_word_embeddings": False}


def llama(hidden: int, inner: int, blocks: int, heads: int) -> dict[str, Any]:
    """Return the configuration of a Llama 3.1."""
    return COMMON | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    }


DEEPSEEK = COMMON | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
}
MODELS = {
    "Llama-3.1-8B": llama(4096, 14336, 32, 32),
    "Llama-3.1-70B": llama(8192, 28672, 80, 64),
    "Llama-3.1-405B": llama(16384, 53248, 126, 128),
    "DeepSeek-V3": DEEPSEEK,
}
TINY_MODELS = {
    "tiny Llama": llama(256, 384, 2, 8),
    "tiny DeepSeek": DEEPSEEK
    | {"hidden_size": 256, "intermediate_size": 384, "moe_intermediate_size": 128}
    | {"num_hidden_layers": 2, "first_k_dense_replace": 1, "n_routed_experts": 16}
    | {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 64},
}
RANKS = (1, 8, 64)
SIZE = 128, 2048  # sequences, and tokens of each


def written(place: Path, models: dict[str, dict] = MODELS) -> Iterator[Path]:
    """Write every model's config.json to a directory of its name; yield the directories."""
    for name, config in models.items():
        directory = place / name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config))
        yield directory


def on_device(here: Estimate, device: str, ranks: int) -> Estimate:
    """Return the same run elsewhere, by what was measured here once."""
    # main has set one thread, so that the rate is that of one core
    rates = stated_throughput(device, ranks, here.trial)
    run = replace(here.run, ranks=ranks)
    return replace(here, run=run, rates=rates, device=device, allowed=None)


def row(name: str, made: Estimate) -> str:
    groups = made.groups
    longest = max(groups, key=lambda group: groups[group])
    allowed = made.capacity if made.allowed is None else made.allowed
    fits = "yes" if made.peak_bytes <= allowed else "no"
    numbers = [
        f"{made.seconds / 3600:10,.2f}",
        f"{made.alone.seconds / made.seconds:5.1f}",
        f"{made.peak_bytes / 1e9:7,.0f}",
        f"{made.memory.weights / 1e9:8,.0f}",
        f"{fits:>5}",
        f"{made.survey.stored_bytes / 1e9:5,.0f}",
        f"{made.unfinished_bytes / 1e9:7,.0f}",
        f"{made.network_bytes / 1e9:8,.0f}",
    ]
    share = groups[longest] / made.seconds
    again = f", {made.offload_cost.again:.0%} again" if made.offload_cost.again else ""
    return (
        f"{name:15} {made.device:5} {made.run.ranks:5} {' '.join(numbers)}  {longest} {share:.0%}"
        f"{again}"
    )


def main() -> None:
    import tiny

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", default="eclq")
    parser.add_argument("--bpw", type=float, default=3.125)
    parser.add_argument("--device", default="h100")
    parser.add_argument("--memory", type=float, default=256e9, help="bytes, of this CPU")
    options = tiny.parse(parser)
    torch.set_num_threads(1)
    method = METHODS[options.method](bpw=options.bpw)  # pyright: ignore
    started = time.perf_counter()
    print(
        "hours; GB in the memory of a process, of which weights; GB on disk, unfinished, and sent"
    )
    names = "hours times      GB  weights  fits disk unfin.      sent"
    print(f"model           device ranks     {names}")
    shown: list[Estimate] = []
    with tempfile.TemporaryDirectory() as place:
        for directory in written(Path(place), TINY_MODELS if options.tiny else MODELS):
            found = survey(directory, method, bare=True)
            here = replace(estimate(found, *SIZE), allowed=round(options.memory))
            shown += [here, *(on_device(here, options.device, ranks) for ranks in RANKS)]
            for made in shown[-1 - len(RANKS) :]:
                print(row(directory.name, made), flush=True)
    print()
    for made in (shown[-4], shown[-1]):
        print("\n".join(made.assumptions()), end="\n\n")
    print(f"planned in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()

"""Runs that keep within a memory: by whatever means, the checkpoint is the same."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nearplane as npl
from nearplane.methods import ECLQ, HPTQ, METHODS
from nearplane.model.selection import Rules
from nearplane.plan.footprint import MemoryNeeds
from nearplane.plan.memory import BASE_BYTES, Memory
from nearplane.plan.offload import Offload, choose_offload, ways
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import survey
from nearplane.types import NearplaneError
from tests.cli import tiny
from tests.walk import moe

quantize_module = import_module("nearplane.pipeline")  # the package has a function of that name
ROOT = Path(__file__).resolve().parents[1]
TOKENS = torch.randint(2, 60, (4, 24), generator=torch.Generator().manual_seed(0))
LEAST = Offload(True, True, 0, 4, Memory(0, 0, 0), 0)
SOME = Offload(True, False, 1, 4, Memory(0, 0, 0), 0, ahead=True, reads=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """Return a dense model with a tied head, and one with experts, not to be altered."""
    root = tmp_path_factory.mktemp("sources")
    tiny.model(layers=2).save_pretrained(root / "dense")
    moe.FAMILIES["mixtral"].model().save_pretrained(root / "experts")
    return {"dense": root / "dense", "experts": root / "experts"}


def content(out: Path) -> dict[str, bytes]:
    """Return what a run wrote, but for its report, which has seconds in it."""
    return {p.name: p.read_bytes() for p in out.iterdir() if p.name.startswith(("model", "config"))}


def made(source: Path, out: Path, means: Offload | None, rules: Rules, method) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        if means is not None:
            patch.setattr(quantize_module, "offload_for", lambda *_: means)
        patch.setattr("nearplane.walk.walk.BATCH_TOKENS", 24)
        # the pages of these small files are forgotten, too
        patch.setattr("nearplane.model.process_memory.LEAST", 0)
        npl.quantize(source, out, method, TOKENS, rules=rules)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    return content(out)


@pytest.mark.parametrize(
    "kind, rules, method",
    [
        ("dense", Rules(), ECLQ(bpw=7.5)),
        ("dense", Rules(keep=("embedding",), skip=("0.mlp",)), HPTQ(bpw=7.5)),
        ("experts", Rules(), HPTQ(bpw=9.5)),
        ("experts", Rules(skip=("1.mlp.experts", "0.mlp.experts.3")), HPTQ(bpw=9.5)),
    ],
    ids=["dense", "head", "experts", "some"],
)
def test_the_checkpoint_is_the_same(kind, rules, method, sources, tmp_path):
    found = []
    for name, means in {"whole": None, "least": LEAST, "some": SOME}.items():
        (tmp_path / name).mkdir()
        found.append(made(sources[kind], tmp_path / name / "out", means, rules, method))
    assert found[0].keys() >= {"config.json", "model.safetensors"}
    assert found[0] == found[1] == found[2]


def test_a_promise_that_cannot_be_kept_is_refused_at_once(sources, tmp_path):
    with pytest.raises(NearplaneError, match="0.09 GiB of memory are too little .* at least 0.70"):
        npl.quantize(sources["dense"], tmp_path / "out", HPTQ(bpw=7.5), TOKENS, memory=10**8)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Return a survey of a model of 2.5 GB."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048}
    config |= {"intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16}
    config |= {"num_key_value_heads": 16, "vocab_size": 8000, "dtype": "bfloat16"}
    directory = tmp_path_factory.mktemp("large")
    (directory / "config.json").write_text(json.dumps(config))
    return survey(directory, ECLQ(), bare=True)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 300), st.sampled_from([512, 2048, 4096]), st.integers(1, 4))
def test_less_memory_is_kept_at_more_time(large, sequences, length, ranks):
    """Ways come from the fastest to that of least memory, and the first that fits is taken."""
    run = RunSize(max(sequences, ranks), length, ranks)
    all_ways = list(ways(large, MemoryNeeds(large, run)))
    totals = [way.memory.total for way in all_ways]
    assert totals == sorted(totals, reverse=True)
    assert all_ways[-1].paused == 0 and all_ways[-1].by_blocks and all_ways[-1].spilled
    for allowed in (totals[0], totals[-1], sum(totals) / len(totals)):
        chosen = choose_offload(large, run, allowed, promised=True)
        assert chosen.memory.total <= allowed
        assert chosen == next(way for way in all_ways if way.memory.total <= allowed)
    with pytest.raises(NearplaneError, match="too little"):
        choose_offload(large, run, totals[-1] - 1, promised=True)
    assert choose_offload(large, run, totals[-1] - 1) == all_ways[-1]


def test_what_is_least_holds_a_block_and_a_batch(large):
    """Two blocks' worth of weights, however many there are, and 5632 columns' Hessians."""
    needs = MemoryNeeds(large, RunSize(128, 2048))
    least = list(ways(large, needs))[-1].memory
    block = 2 * (4 * 2048**2 + 3 * 2048 * 5632 + 2 * 2048)
    outside = 2 * (2 * 8000 * 2048 + 2048)
    assert needs.weights(by_blocks=True) == 2 * block + outside
    assert needs.weights(by_blocks=True, ahead=True) == 3 * block + outside
    # when most is needed, the down projection is rounded, and other pages of files are let go
    assert least.weights == block + 2 * 2048 * 5632
    assert least.total < 3e9 and least.base == BASE_BYTES
    sentence = least.sentence()
    assert all(part in sentence for part in ("weights", "states", "working", "base"))


def test_gguf_files_are_loaded_as_a_whole(large):
    assert large.empty.readable_by_blocks
    where = large.empty.where | {"gguf_file": "model.gguf"}
    file = replace(large, empty=replace(large.empty, where=where))
    assert not any(way.by_blocks for way in ways(file, MemoryNeeds(file, RunSize(4, 512))))


CHILD = """
import resource, sys, torch
import nearplane as npl
from nearplane.cli.quiet import quiet
from nearplane.methods.method import from_recipe
import json
quiet()
tokens = torch.randint(1000, (8, 512), generator=torch.Generator().manual_seed(0))
model, out, recipe, memory = sys.argv[1:]
npl.quantize(model, out, from_recipe(json.loads(recipe)), tokens, sequences=8, memory=int(memory))
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.long
@pytest.mark.parametrize(("name", "ahead"), [*((name, False) for name in METHODS), ("hptq", True)])
def test_every_method_keeps_within_what_is_promised(name, ahead, tmp_path):
    """For a model of wide layers, files included: the least, or with a block that is read ahead."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=512, intermediate_size=4096, num_hidden_layers=6 if ahead else 3,
        num_attention_heads=8, vocab_size=1000, dtype="bfloat16",
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    method = METHODS[name]()
    found = survey(tmp_path / "model", method)
    all_ways = list(ways(found, MemoryNeeds(found, RunSize(8, 512))))
    way = next(w for w in all_ways if w.by_blocks and w.ahead) if ahead else all_ways[-1]
    most = way.memory.total
    recipe = json.dumps(method.recipe())
    command = [sys.executable, "-c", CHILD, str(tmp_path / "model"), str(tmp_path / "out"), recipe]
    run = subprocess.run(
        [*command, str(int(most) + 1)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split("PEAK")[1]) <= most

"""Models of real sizes without numbers, and walks over them on a GPU without numbers."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

from nearplane import codes
from nearplane.codes import record
from nearplane.kernels.gpu import nearest_plane
from nearplane.lattice.nearest_plane import LEAF
from nearplane.methods import Method
from nearplane.methods.meet_rate import RateSettings
from nearplane.methods.rate import Budget
from nearplane.model.blocks import Layer, find_blocks
from nearplane.pipeline import Watcher, written
from nearplane.plan.footprint import MemoryNeeds
from nearplane.plan.run_size import RunSize
from nearplane.plan.survey import Survey, survey
from nearplane.precision import exact_products
from nearplane.walk import walk as walk_file
from nearplane.walk.hidden_states import CPU
from nearplane.walk.output_hessians import BackwardPasses
from nearplane.walk.placement import ActivationLimits, Placement
from nearplane.walk.rounding import Rounder
from nearplane.walk.sensitivity import Probe
from nearplane.walk.trace import ModelTrace, Stage, trace_model
from nearplane.walk.walk import Prepared, Walk
from tests.device.fake_cuda import CUDA, FakeCuda, fake_cuda, without_numbers_

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
LLAMA_405B = LLAMA_8B | {
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_attention_heads": 128,
}
QWEN3_30B_A3B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "vocab_size": 151936,
}
TINY = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 96, "head_dim": 16}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "moe_intermediate_size": 32}
CONFIGS = {"llama": LlamaConfig, "qwen3_moe": Qwen3MoeConfig}
HEADROOM = 0.02  # bits per weight by which the first sweep over a layer misses its rate


def config_of(numbers: dict[str, Any], blocks: int) -> Any:
    """Return the configuration of a model with so many blocks."""
    options = {"num_hidden_layers": blocks, "max_position_embeddings": 8192}
    options |= {"tie_word_embeddings": False, "dtype": "bfloat16"}
    return CONFIGS[numbers["model_type"]](**numbers | options)


def surveyed(numbers: dict[str, Any], blocks: int, method: Method) -> Survey:
    """Return a model on the meta device, and what a method quantizes of it."""
    with TemporaryDirectory() as folder:
        config_of(numbers, blocks).save_pretrained(folder)
        found = survey(Path(folder), method, bare=True, arithmetic="bfloat16")
    # on an accelerator products run in the stored type
    return replace(found, compute=found.dtype)


def trace_of(numbers: dict[str, Any], blocks: int, model: Any) -> ModelTrace:
    """Return what a run of a narrow model of this family shows, for a wide one."""
    torch.manual_seed(0)
    small = AutoModelForCausalLM.from_config(config_of(numbers | TINY, blocks)).eval()
    small = small.float().requires_grad_(False)
    found = trace_model(small, torch.randint(3, 90, (4, 16)))
    wide: dict[Any, Any] = {
        module: model.get_submodule(name) for name, module in small.named_modules()
    }

    def layers(of: list[Layer]) -> list[Layer]:
        return [Layer(layer.name, wide[layer.module]) for layer in of]

    def stage(of: Stage) -> Stage:
        mixture = None if of.mixture is None else wide[of.mixture]
        expert = None if of.expert is None else wide[of.expert]
        return Stage(layers(of.layers), of.times, layers(of.late), mixture, expert)

    return replace(
        found,
        blocks=find_blocks(model)[1],
        stages=[[stage(each) for each in stages] for stages in found.stages],
        unreached=layers(found.unreached),
        added={name: wide[module] for name, module in found.added.items()},
        used_again={wide[module] for module in found.used_again},
    )


@dataclass(frozen=True)
class Run:
    """A run on a GPU without numbers: of a model with few blocks, on a calibration.

    - `limits`: where hidden states are, and how many batches wait inside a block.
    - `experts`: of a block that are rounded; None is all. They are all alike.
    """

    numbers: dict[str, Any]
    method: Method
    blocks: int = 2
    sequences: int = 128
    length: int = 2048
    limits: ActivationLimits = ActivationLimits()
    experts: int | None = None

    def needs(self) -> MemoryNeeds:
        """Return what is planned."""
        found = surveyed(self.numbers, self.blocks, self.method)
        return MemoryNeeds(found, RunSize(self.sequences, self.length))

    def counted(self, found: Survey) -> FakeCuda:
        """Return what the run of a surveyed model holds, copies and asks, phase by phase."""
        model: Any = found.model
        trace = trace_of(self.numbers, self.blocks, model)
        answers = ANSWERS | {"walk/forward_pass.py:share_memory_": self.alike}
        with host_coders(), fake_cuda(answers) as mode, phases(mode):
            without_numbers_(model, found.dtype)
            placement = Placement(model, dtype=found.compute, limits=self.limits, device=CUDA)
            tokens = torch.zeros(self.sequences, self.length, dtype=torch.int64, device=CPU)
            walk = Walk(model, self.method, tokens, selection=found.selection, placement=placement)
            layers = [*found.selection.among(trace.layers)]
            layers += found.selection.layers_outside(model)
            walk.ready = Prepared(placement, found.selection, trace, layers)
            with exact_products(CUDA):
                if self.method.allocates:
                    walk.allocate()
                    assert not walk.by_themselves, walk.by_themselves
                if self.experts is not None:
                    few = [self.some(stages) for stages in trace.stages]
                    walk.ready.trace = replace(trace, stages=few)
                written(walk, SimpleNamespace(add=lambda *_: None), Watcher())
        return mode

    def some(self, stages: list[Stage]) -> list[Stage]:
        """Return stages with those of the first experts only: all experts are alike."""
        assert self.experts is not None
        plain = [stage for stage in stages if stage.mixture is None]
        return plain + [s for s in stages if s.mixture is not None][: 2 * self.experts]

    def alike(self, tensor: Tensor) -> bool:
        """Whether an argument of a block is the same for all batches: not hidden states."""
        return tensor.shape[-1] != self.numbers["hidden_size"]


# what code that branches on a number of the GPU is told, where True, 0 or 1 would mislead it
ANSWERS: dict[str, Any] = {
    "methods/certificate.py:certify_cells": False,
    "walk/walk.py:allocate": 3.1,
}


def phases(mode: FakeCuda) -> Any:
    """Keep the peaks of a run's parts apart."""
    stack = ExitStack()
    for owner, name, phase in (
        (BackwardPasses, "output_hessians", "gradients"),
        (Probe, "sensitivities", "probing"),
        (Walk, "begun_passes", "begin"),
        (Walk, "quantize_embedding", "embedding"),
        (Walk, "statistics_at_head", "head's sums"),
        (Walk, "quantize_head", "head"),
        (walk_file, "statistics_of", "sums"),
        (Rounder, "round", "rounding"),
        (walk_file.Passes, "hand_on", "handing on"),
    ):
        stack.enter_context(patch.object(owner, name, in_phase(mode, phase, getattr(owner, name))))
    return stack


def in_phase(mode: FakeCuda, name: str, function: Any) -> Any:
    """Return a function that runs in a phase of its own; its generator, too."""
    code = function.__code__
    if code.co_flags & 0x20:

        def generator(*args: Any, **kwargs: Any) -> Iterator[Any]:
            made = function(*args, **kwargs)
            while True:
                with mode.phase(name):
                    try:
                        found = next(made)
                    except StopIteration:
                        return
                yield found

        return generator

    def inside(*args: Any, **kwargs: Any) -> Any:
        with mode.phase(name):
            return function(*args, **kwargs)

    return inside


@cache
def fitted(contexts: bool) -> codes.Tables:
    """Return tables that are fitted to a few integers."""
    draws = np.random.default_rng(0)
    return codes.fit(draws.normal(0, 2, (64, 64)).round().astype(np.int32), contexts=contexts)


@contextmanager
def host_coders() -> Iterator[None]:
    """Let the coders of the machine's processor, and the kernel, take integers without numbers.

    They get the arrays that they would get, and say what lets the search for a rate take as many
    sweeps as usual.
    """
    for contexts in (False, True):
        fitted(contexts)

    def fit(code: np.ndarray, rows: int | None = None, contexts: bool = True) -> codes.Tables:
        tables = fitted(contexts)
        of_all = tables.contexts
        wide = codes.Contexts(
            np.resize(of_all.row, code.shape[0]), np.resize(of_all.column, code.shape[1])
        )
        return replace(tables, contexts=wide)

    own_rate, own_excess = Budget.estimated_rate, RateSettings.estimated_excess

    sweeps: set[int] = set()

    def rate(self: Budget, code: Tensor) -> float:
        own_rate(self, code)
        # every other sweep over all rows of a matrix is a first one
        first = len(code) == self.rows and id(self) not in sweeps
        (sweeps.add if first else sweeps.discard)(id(self))
        return self.target - (HEADROOM if first else 0)

    def excess(self: RateSettings, *args: Any) -> float:
        own_excess(self, *args)
        first = sys._getframe(1).f_code.co_name == "predict_scale" and 0 not in sweeps
        (sweeps.add if first else sweeps.discard)(0)
        return HEADROOM if first else 0.0

    def encode(self: Any, integers: np.ndarray) -> bytes:
        return b"\0" * 64

    lazy = SimpleNamespace(**vars(np) | {"ascontiguousarray": lambda array: array})
    with ExitStack() as stack:
        for owner, name, value in (
            (codes, "fit", fit),
            (codes.Rans, "encode", encode),
            (codes.Huffman, "encode", encode),
            (Budget, "estimated_rate", rate),
            (RateSettings, "estimated_excess", excess),
            (record, "np", lazy),
            (nearest_plane, "start", started),
            (nearest_plane.TritonSweep, "solve", solved_once),
            (nearest_plane, "has_triton", lambda: True),
        ):
            stack.enter_context(patch.object(owner, name, value))
        yield


def solved_once(self: Any, first: int, end: int, seen: set[Any] = set()) -> None:  # noqa: B006
    """Round the columns of a tile of rows; of later tiles of this shape, the first leaf only."""
    whole = first == 0 and end == len(self.target)
    if whole and self.target.shape in seen:
        return self.leaf(max(end - LEAF, 0), end)
    if whole:
        seen.add(self.target.shape)
    return SOLVE(self, first, end)


SOLVE = nearest_plane.TritonSweep.solve


def started(launch: Any, **tensors: Tensor | None) -> None:
    """Check what a kernel is given."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    types = {name: tensor.dtype for name, tensor in given.items()}
    for name, tensor in given.items():
        assert tensor.device == CUDA, f"{name} on {tensor.device}"
        assert tensor.is_contiguous(), f"{name} {tensor.stride()}"
        kind = torch.int32 if name in ("code", "at_row", "at_column") else types["target"]
        assert tensor.dtype == kind, f"{name} {tensor.dtype}"
    for name in ("best", "error", "code"):
        assert given[name].shape == given["target"].shape

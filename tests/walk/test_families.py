"""Every family is walked whole, in true sequence, and its checkpoint computes what was walked."""

import copy
import hashlib
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import nearplane as npl
from nearplane.export import checkpoint_reader
from nearplane.export.checksums import verify_sums
from nearplane.export.linear import CompressedLinear
from nearplane.methods import ECLQ, GPTQ, HPTQ, SSQR
from nearplane.types import QuantizedWeight
from nearplane.walk import walk as walk_file
from nearplane.walk.walk import Walk
from tests.export import tiny as export_tiny
from tests.walk import tiny
from tests.walk.tiny import TOKENS

families = pytest.mark.parametrize("family", tiny.FAMILIES)

COARSE = GPTQ(bits=3, group_size=16, hessian_steps=False)
# Float32 against float64: eps · √columns · about 10 products in a row is 1e-5 of the Hessian. What
# a wrong sequence does is far above it: see test_the_limit_tells_a_wrong_sequence.
LIMIT = 1e-5


@dataclass
class Watched(Walk):
    """A walk that keeps the Hessian of every stage and the layers that share it."""

    seen: list[tuple[list[str], Tensor]] = field(default_factory=list)

    def rounder_for(self, found):
        rounder = super().rounder_for(found)
        basis_of = rounder.basis_of

        def noted(inputs, layers):
            self.seen.append(([layer.name for layer in layers], inputs.hessian.clone()))
            return basis_of(inputs, layers)

        rounder.basis_of = noted
        return rounder


def walked(
    model: PreTrainedModel, method=COARSE, tokens: Tensor = TOKENS
) -> tuple[Watched, dict[str, QuantizedWeight]]:
    """Return a finished walk over a copy of `model` and its weights by name, in walking order."""
    walk = Watched(copy.deepcopy(model), method, tokens, tiny.in_blocks())
    return walk, {layer.name: weight for layer, weight, _ in walk}


def put(model: nn.Module, name: str, value: Tensor) -> None:
    """Let a layer of `model` hold `value`, given as (out, in)."""
    layer = model.get_submodule(name)
    layer.weight.data.copy_(value.T if isinstance(layer, Conv1D) else value)


def hessian_of(model: nn.Module, name: str) -> Tensor:
    """Return the mean of x xᵀ over what a whole forward pass gives a layer."""
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].flatten(0, -2).double())
    )
    with torch.no_grad():
        model(input_ids=TOKENS)
    hook.remove()
    inputs = torch.cat(seen)
    return inputs.T @ inputs / len(inputs)


def distance(hessian: Tensor, reference: Tensor) -> float:
    return float((hessian.double() - reference).norm() / reference.norm())


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Let five sequences be three batches, the last of them short."""
    monkeypatch.setattr(walk_file, "BATCH_TOKENS", 48)


@families
def test_every_linear_of_the_blocks_is_walked_once_in_its_stage(family):
    model = tiny.FAMILIES[family].model()
    walk, weights = walked(model)
    expected = tiny.FAMILIES[family].stage_names(model)
    assert [sorted(names) for names, _ in walk.seen] == [sorted(names) for names in expected]
    assert sorted(weights) == sorted(export_tiny.linear_layers(model))
    assert all(line.endswith("as asked") for line in walk.left_out) and not walk.fallbacks


@families
def test_every_stage_sees_what_the_quantized_layers_before_it_give(family):
    model = tiny.FAMILIES[family].model()
    walk, weights = walked(model)
    reference = copy.deepcopy(model).double()
    for names, hessian in walk.seen:
        for name in names:
            assert distance(hessian, hessian_of(reference, name)) < LIMIT, name
        for name in names:
            put(reference, name, weights[name].value())


@families
def test_the_limit_tells_a_wrong_sequence(family):
    """The test itself: leaving any one stage before it unquantized is seen by a later stage."""
    model = tiny.FAMILIES[family].model()
    walk, weights = walked(model)
    last, hessian = walk.seen[-1]
    for forgotten, _ in walk.seen[:-1]:
        reference = copy.deepcopy(model).double()
        for name in weights.keys() - {*forgotten, *last}:
            put(reference, name, weights[name].value())
        assert distance(hessian, hessian_of(reference, last[0])) > 100 * LIMIT, forgotten


@families
def test_reports_say_what_the_weights_say(family):
    model = tiny.FAMILIES[family].model()
    walk = Watched(copy.deepcopy(model), COARSE, TOKENS, tiny.in_blocks())
    for layer, weight, report in walk:
        before = export_tiny.linear_layers(model)[layer.name].weight.detach().double()
        before = before.T if layer.transposed else before
        error = before - weight.value().double()
        hessian = walk.seen[-1][1].double()
        assert (report.rows, report.columns) == before.shape
        assert report.tokens == TOKENS.numel() and report.dropped_tokens == 0
        assert report.weight_error == pytest.approx(float(error.square().sum()), rel=1e-5)
        # float32 products over at most 64 columns: eps · √64 of sums without cancellation
        assert report.loss == pytest.approx(float((error @ hessian * error).sum()), rel=1e-4)
        assert report.energy == pytest.approx(float((before @ hessian * before).sum()), rel=1e-4)


def test_what_is_done_is_let_go():
    walk, weights = walked(tiny.FAMILIES["llama"].model())
    layers = export_tiny.linear_layers(walk.model)
    assert all(layers[name].weight.numel() == 0 for name in weights)


METHODS = {
    "llama": HPTQ(bpw=5.0),
    "llama_tied": SSQR(bits=3, group_size=32, outliers=0.02),
    "gpt2": HPTQ(bpw=6.0, order="natural"),
    "gemma3": ECLQ(bpw=9.5, allocate=False),
    "opt": ECLQ(bpw=9.5, paths=2, allocate=False),
}


@dataclass
class Case:
    """A checkpoint made by npl.quantize, and the dense model that holds the same values."""

    source: Path
    path: Path
    report: dict
    dense: PreTrainedModel


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """Return family -> its checkpoint, made once and not to be altered."""
    cases: dict[str, Case] = {}

    def case(family: str) -> Case:
        if family not in cases:
            directory = tmp_path_factory.mktemp(family)
            source, out = directory / "model", directory / "out"
            dense = tiny.FAMILIES[family].model()
            dense.save_pretrained(source)
            method = METHODS.get(family, COARSE)
            report = npl.quantize(source, out, method, TOKENS, rules=tiny.in_blocks())
            for name, weight in walked(dense, method)[1].items():
                put(dense, name, weight.value())
            cases[family] = Case(source, out, report, dense)
        return cases[family]

    return case


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def assert_same_logits(model: nn.Module, dense: PreTrainedModel) -> None:
    """Equal but for the order in which products are summed in float32.

    A sum of n terms is off by at most n · 2⁻²⁴ of its terms' magnitudes; here n is at most 128 and
    errors add up over some ten layers.
    """
    got, expected = logits(model), logits(dense)
    assert (got - expected).abs().max() <= 10 * 2**-24 * 128**0.5 * expected.abs().max()


@families
def test_a_checkpoint_computes_what_was_walked(quantized, family):
    case = quantized(family)
    model = npl.load(case.path)
    compressed = [n for n, m in model.named_modules() if isinstance(m, CompressedLinear)]
    assert sorted(compressed) == sorted(export_tiny.linear_layers(case.dense))
    assert_same_logits(model, case.dense)
    assert verify_sums(case.path) == []
    assert checkpoint_reader.check_layers(case.path) == []
    assert len(case.report["layers"]) == len(compressed) and not case.report["fallbacks"]


@families
def test_a_checkpoint_generates(quantized, family):
    case = quantized(family)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    got = npl.load(case.path).generate(TOKENS[:1, :8], **options)
    assert got.shape == (1, 14)
    assert torch.equal(got, case.dense.generate(TOKENS[:1, :8], **options))


@families
def test_a_checkpoint_is_saved_and_loaded_again(quantized, family, tmp_path):
    case = quantized(family)
    npl.load(case.path).save_pretrained(tmp_path / "again")
    assert_same_logits(npl.load(tmp_path / "again"), case.dense)
    assert verify_sums(case.path) == []


@families
def test_the_same_inputs_give_the_same_bytes(quantized, family, tmp_path):
    case = quantized(family)
    method = METHODS.get(family, COARSE)
    npl.quantize(case.source, tmp_path / "out", method, TOKENS, rules=tiny.in_blocks())
    for name in ("model.safetensors", "config.json"):
        assert file_hash(tmp_path / "out" / name) == file_hash(case.path / name), name

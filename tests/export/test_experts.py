"""A checkpoint of a model with experts computes what was rounded, however it is read."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers reads it

import copy
import importlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

import nearplane as npl
from nearplane.export import checkpoint_reader
from nearplane.export.linear import CompressedLinear
from nearplane.model.experts import Experts, split_experts_
from nearplane.model.selection import Rules
from nearplane.types import NearplaneError
from nearplane.walk.walk import Walk
from tests.export.test_load import assert_as_near
from tests.walk import moe
from tests.walk.tiny import TOKENS

families = pytest.mark.parametrize("family", moe.FAMILIES)

METHODS = {
    "mixtral": npl.HPTQ(bpw=6.0),
    "qwen3_moe": npl.RTN(bits=4, group_size=16),
    "qwen2_moe": npl.SSQR(bits=3, group_size=32, outliers=0.02),
    "deepseek_v3": npl.ECLQ(bpw=9.5, allocate=False),
    "gpt_oss": npl.HPTQ(bpw=6.0),
}
SIZES = {"deepseek_v3": {"n_routed_experts": 4}, "qwen2_moe": {"num_experts": 4}}
# where other programs look for the matrices of single experts
THEIRS = {
    "mixtral": "model.layers.1.block_sparse_moe.experts.3.w1.weight",
    "qwen3_moe": "model.layers.1.mlp.experts.3.gate_proj.weight",
    "qwen2_moe": "model.layers.1.mlp.experts.3.gate_proj.weight",
    "deepseek_v3": "model.layers.1.mlp.experts.3.gate_proj.weight",
    "gpt_oss": "model.layers.1.mlp.experts.gate_up_proj",
}


@dataclass
class Case:
    """A checkpoint, what it was made of, and the dense model that holds the walk's values."""

    source: Path
    path: Path
    report: dict
    dense: PreTrainedModel


class Told(Walk):
    """A walk that puts what it gives into `dense`, a model whose experts are fused."""

    dense: PreTrainedModel

    def __iter__(self):
        for done in super().__iter__():
            moe.put(self.dense, done[0].name, done[1].value())
            yield done


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """Return family -> its checkpoint, made once and not to be altered."""
    cases: dict[tuple, Case] = {}

    def case(family: str, *skip: str) -> Case:
        if (family, *skip) not in cases:
            directory = tmp_path_factory.mktemp(family)
            source, out = directory / "model", directory / "out"
            model = moe.FAMILIES[family].model(**SIZES.get(family, {}))
            model.save_pretrained(source)
            Told.dense = copy.deepcopy(model)
            with pytest.MonkeyPatch.context() as patch:
                # the package has the function by this name
                patch.setattr(importlib.import_module("nearplane.pipeline"), "Walk", Told)
                rules = Rules(skip=skip)
                report = npl.quantize(source, out, METHODS[family], TOKENS, rules=rules)
            cases[(family, *skip)] = Case(source, out, report, Told.dense)
        return cases[(family, *skip)]

    return case


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def assert_same_logits(model: nn.Module, dense: PreTrainedModel) -> None:
    """Equal but for roundings, of products of at most 64 terms in some ten layers."""
    got, expected = logits(model), logits(dense)
    assert (got - expected).abs().max() <= 10 * 2**-24 * 64**0.5 * expected.abs().max()


def tensors_of(directory: Path) -> dict[str, Tensor]:
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@families
@pytest.mark.parametrize("read", [npl.load, AutoModelForCausalLM.from_pretrained])
def test_a_checkpoint_computes_what_was_walked(quantized, family, read):
    case = quantized(family)
    model = read(case.path)
    experts = model.get_submodule(moe.FAMILIES[family].experts)
    assert isinstance(experts, Experts)
    assert all(isinstance(la, CompressedLinear) for e in experts for la in (*e.first, e.down_proj))
    assert_same_logits(model, case.dense)
    assert checkpoint_reader.check_layers(case.path) == []
    assert npl.resident_bpw(model) > 0


@families
def test_records_are_of_single_experts_and_routers_are_kept(quantized, family):
    case, known = quantized(family), moe.FAMILIES[family]
    stored = tensors_of(case.path)
    count = len(case.dense.get_submodule(known.experts).down_proj)
    for index in range(count):
        for kind in ("gate_proj", "up_proj", "down_proj"):
            assert f"{known.experts}.{index}.{kind}.record" in stored
    router = f"{known.router}.weight"
    assert torch.equal(stored[router], case.dense.state_dict()[router])
    assert not any(name.endswith(("experts.gate_up_proj", "experts.down_proj")) for name in stored)


@families
def test_a_checkpoint_generates(quantized, family):
    case = quantized(family)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    got = npl.load(case.path).generate(TOKENS[:1, :8], **options)
    assert torch.equal(got, case.dense.generate(TOKENS[:1, :8], **options))


@families
def test_saved_again_it_is_the_same_file(quantized, family, tmp_path):
    case = quantized(family)
    npl.load(case.path).save_pretrained(tmp_path / "again")
    assert_same_logits(npl.load(tmp_path / "again"), case.dense)
    first, again = tensors_of(case.path), tensors_of(tmp_path / "again")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


@families
def test_dequantized_it_is_a_plain_model_again(quantized, family, tmp_path):
    case = quantized(family)
    model = npl.load(case.path, dequantize=True)
    assert not any(isinstance(m, Experts | CompressedLinear) for m in model.modules())
    expected = case.dense.state_dict()
    assert list(model.state_dict()) == list(expected)
    assert all(torch.equal(part, expected[name]) for name, part in model.state_dict().items())
    model.save_pretrained(tmp_path)
    assert THEIRS[family] in tensors_of(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not hasattr(plain.config, "quantization_config")
    assert torch.equal(logits(plain), logits(case.dense))


def test_the_model_without_a_head_reads_it(quantized):
    case = quantized("mixtral")
    base = AutoModel.from_pretrained(case.path)
    exact = moe.in_double(case.dense).model
    with torch.no_grad():
        got, dense, exact = (
            model(input_ids=TOKENS).last_hidden_state for model in (base, case.dense.model, exact)
        )
    assert_as_near(got, dense, exact)


PARTS = [("mixtral", r"experts\.1\."), ("qwen3_moe", r"experts\.1\."), ("gpt_oss", r"\.2\.up_proj")]


@pytest.mark.parametrize(("family", "skip"), PARTS)
@pytest.mark.parametrize("read", [npl.load, AutoModel.from_pretrained])
def test_experts_that_are_skipped_are_stored_as_they_are(quantized, family, skip, read):
    """Their names are those that transformers would make fused tensors of; it must not."""
    case = quantized(family, skip)
    model = read(case.path)
    kept = [m for m in model.modules() if type(m) is nn.Linear]
    assert len(kept) > 1
    original = AutoModelForCausalLM.from_pretrained(case.source)
    experts = moe.FAMILIES[family].experts
    index = 2 if "2" in skip else 1
    found = model.get_submodule(experts if read is npl.load else experts.removeprefix("model."))
    matrix = moe.matrices(original.get_submodule(experts), index)["up_proj"]
    assert torch.equal(found[index].up_proj.weight, matrix)
    if read is npl.load:
        assert_same_logits(model, case.dense)
        plain = model.dequantize()
        assert list(plain.state_dict()) == list(case.dense.state_dict())


def test_experts_of_which_none_is_rounded_stay_together(quantized, tmp_path):
    case = quantized("mixtral", r"layers\.0.*experts")
    names = tensors_of(case.path)
    assert "model.layers.0.mlp.experts.gate_up_proj" in names
    assert "model.layers.1.mlp.experts.0.up_proj.record" in names
    model = npl.load(case.path)
    kinds = [type(layer.mlp.experts).__name__ for layer in model.model.layers]
    assert kinds == ["MixtralExperts", "Experts"]
    assert_same_logits(model, case.dense)
    model.save_pretrained(tmp_path)
    assert tensors_of(tmp_path).keys() == names.keys()


@families
def test_the_report_counts_tokens_of_experts(quantized, family):
    case, known = quantized(family), moe.FAMILIES[family]
    arrived = case.report["experts"][known.experts]
    assert sum(arrived.values()) == known.top_k * TOKENS.numel()
    certificate = json.loads((case.path / "config.json").read_text())["quantization_config"]
    for index, tokens in arrived.items():
        entry = certificate["layers"][f"{known.experts}.{index}.up_proj"]
        assert entry["tokens"] == tokens
        assert entry["fallback"].startswith(f"{tokens} tokens for 32 columns")
    assert case.report["relative_loss"] > 0 and not case.report["fallbacks"]


def test_the_same_inputs_give_the_same_bytes(quantized, tmp_path):
    case = quantized("mixtral")
    npl.quantize(case.source, tmp_path / "out", METHODS["mixtral"], TOKENS)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (case.path / name).read_bytes(), name


def test_a_model_split_before_is_read_as_well(quantized):
    """What is loaded without records can be split; a checkpoint's own experts stay as they are."""
    case = quantized("mixtral")
    model = npl.load(case.path)
    split_experts_(model)
    assert_same_logits(model, case.dense)


def edited(case: Case, out: Path, edit) -> Path:
    shutil.copytree(case.path, out)
    config = json.loads((out / "config.json").read_text())
    edit(config["quantization_config"]["layers"])
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize("place", ["9.up_proj", "0.side_proj", "entry", "up_proj"])
def test_experts_that_a_model_lacks_are_refused(quantized, tmp_path, place):
    case = quantized("mixtral")
    name = f"model.layers.1.mlp.experts.{place}"

    def edit(layers: dict) -> None:
        layers[name] = layers.pop("model.layers.1.mlp.experts.0.up_proj")

    with pytest.raises(NearplaneError, match="experts"):
        npl.load(edited(case, tmp_path / "out", edit))


def test_two_experts_exchanged_are_heard(quantized, tmp_path):
    """The test itself: other numbers in the right places do not pass."""
    case = quantized("mixtral")
    model = npl.load(case.path)
    experts = model.model.layers[1].mlp.experts
    experts._modules["0"], experts._modules["1"] = experts[1], experts[0]
    with pytest.raises(AssertionError):
        assert_same_logits(model, case.dense)

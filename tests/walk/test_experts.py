"""Experts are rounded one by one on the tokens that come to them, and on others if few do."""

import copy
import functools
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from nearplane.methods import ECLQ, HPTQ, RTN, SSQR
from nearplane.model.experts import Experts, join_experts_, routes, split_experts_
from nearplane.model.selection import Rules
from nearplane.report.report_json import few_token_sentences, is_nearest, layer_row, relative_loss
from nearplane.types import NearplaneError
from nearplane.walk import expert_hessians
from nearplane.walk import walk as walk_file
from nearplane.walk.expert_hessians import ExpertTokens, borrowed
from nearplane.walk.forward_pass import Passes
from nearplane.walk.placement import Placement
from nearplane.walk.sensitivity import Probe
from nearplane.walk.trace import trace_model
from nearplane.walk.walk import Walk
from tests.walk import moe
from tests.walk.tiny import TOKENS, in_blocks

families = pytest.mark.parametrize("family", moe.FAMILIES)

METHODS = [RTN(bits=4, group_size=16), HPTQ(bpw=6.0), SSQR(bits=3, group_size=32, outliers=0.02)]
LIMIT = 1e-5  # as in test_families.py: float32 against float64
# so many that each expert of the Mixtral gets more than four tokens a column
MANY = torch.randint(2, 61, (16, 48), generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Let five sequences be three batches, the last of them short."""
    monkeypatch.setattr(walk_file, "BATCH_TOKENS", 48)


@dataclass
class Watched(Walk):
    """A walk that keeps the Hessian of every layer."""

    seen: dict[str, Tensor] = field(default_factory=dict)
    stages: list[list[str]] = field(default_factory=list)

    def rounder_for(self, found):
        rounder = super().rounder_for(found)
        basis_of = rounder.basis_of

        def noted(inputs, layers):
            self.stages.append([layer.name for layer in layers])
            for layer in layers:
                self.seen[layer.name] = inputs.hessian.clone()
            return basis_of(inputs, layers)

        rounder.basis_of = noted
        return rounder


def walked(model: nn.Module, method=METHODS[1], tokens: Tensor = TOKENS, **options):
    """Return a finished walk over a copy of `model`, and weight and report of every layer."""
    walk = Watched(copy.deepcopy(model), method, tokens, **{"rules": in_blocks()} | options)
    return walk, {layer.name: (weight, report) for layer, weight, report in walk}


@functools.cache
def walked_once(family: str):
    """Return a model of a family, and the walk over it with few tokens; not to be altered."""
    model = moe.FAMILIES[family].model()
    return model, *walked(model)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@families
def test_one_by_one_they_compute_what_they_did_together(family):
    model = moe.FAMILIES[family].model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = logits(model)
    split_experts_(model)
    assert isinstance(model.get_submodule(moe.FAMILIES[family].experts), Experts)
    # products of at most 64 terms, summed in another order
    assert (logits(model) - expected).abs().max() <= 8 * 2**-24 * 8 * expected.abs().max()
    again = copy.deepcopy(model)
    join_experts_(again)
    assert list(again.state_dict()) == list(before)
    assert all(torch.equal(before[name], part) for name, part in again.state_dict().items())
    assert torch.equal(logits(again), expected)


def test_bfloat16_is_summed_once():
    """Four experts' bfloat16 outputs are added in float32 and rounded at the end."""
    model = moe.mixtral(num_experts_per_tok=4).to(torch.bfloat16)
    split_experts_(model)
    experts = model.model.layers[0].mlp.experts
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(9, 32, generator=draws).bfloat16()
    share = torch.rand(9, 4, generator=draws).bfloat16()
    with torch.no_grad():
        made = [expert.down_proj(experts.inner(expert, x)) for expert in experts]
        parts = [(part * share[:, [index]]).float() for index, part in enumerate(made)]
        got = experts(x, torch.arange(4).repeat(9, 1), share)
    assert torch.equal(got, sum(parts).bfloat16())


def test_every_place_is_sent_to_its_expert():
    index = torch.tensor([[3, 0], [0, 9], [3, 1]])
    sent = routes(index, 4)
    assert [places.tolist() for places in sent] == [[1, 2], [5], [], [0, 4]]
    assert len(routes(index.to("meta"), 4)) == 4


def test_transformers_decides_what_is_fused():
    """A layer with tensors of three dimensions that we do not know is named, and left alone."""
    model = moe.mixtral()
    model.model.layers[0].mlp.experts.more = nn.Parameter(torch.ones(2), requires_grad=False)
    walk, done = walked(model)
    assert any(s.startswith("model.layers.0.mlp.experts (Mixtral") for s in walk.left_out)
    assert not any(name.startswith("model.layers.0.mlp") for name in done)
    with pytest.raises(NearplaneError, match="MixtralExperts"):
        Walk(model, METHODS[1], TOKENS, Rules(strict=True)).prepare()


@families
def test_every_expert_is_walked_and_no_router_is(family):
    known = moe.FAMILIES[family]
    model, walk, done = walked_once(family)
    count = len(model.get_submodule(known.experts).down_proj)
    inside = [
        [f"{known.experts}.{index}.{name}" for name in names]
        for index in range(count)
        for names in (["gate_proj", "up_proj"], ["down_proj"])
    ]
    stages = [stage for stage in walk.stages if stage[0].startswith(known.experts)]
    assert stages == inside
    block = known.experts.removesuffix("mlp.experts")
    beside = {name.removeprefix(block) for name in done if name.startswith(f"{block}mlp")}
    beside -= {name.removeprefix(block) for stage in inside for name in stage}
    assert beside == set(known.beside)
    assert f"{known.router} stays as it is: it chooses or weighs experts" in walk.left_out
    assert not walk.fallbacks
    # routers are no reason to refuse a model
    Walk(copy.deepcopy(model), METHODS[1], TOKENS, Rules(strict=True)).prepare()


@families
def test_every_token_is_counted_with_the_experts_it_goes_to(family):
    known = moe.FAMILIES[family]
    _, walk, done = walked_once(family)
    for experts, arrived in walk.arrivals.items():
        assert sum(arrived.values()) == known.top_k * TOKENS.numel()
        for index, tokens in arrived.items():
            for kind in ("gate_proj", "up_proj", "down_proj"):
                assert done[f"{experts}.{index}.{kind}"][1].tokens == tokens
    assert known.experts in walk.arrivals


def blend(own: Tensor, lent: Tensor) -> Tensor:
    """Return the stated mixture of an expert's tokens and of lent ones, on its own."""
    n, columns = own.shape
    m = columns if n <= 3 * columns else max(4 * columns - n, 0)
    return (n * moe.moment(own) + m * moe.moment(lent)) / (n + m)


@pytest.mark.parametrize(
    ("family", "tokens"),
    [*((family, TOKENS) for family in moe.FAMILIES), ("mixtral", MANY), ("deepseek_v3", MANY)],
)
def test_hessians_are_of_the_tokens_of_each_expert(family, tokens):
    """Against a fused model in float64 with every layer before rounded, and its own routing."""
    known = moe.FAMILIES[family]
    if tokens is TOKENS:
        model, walk, done = walked_once(family)
    else:
        model = known.model()
        walk, done = walked(model, tokens=tokens)
    reference = moe.in_double(model)
    # all that comes before the last block's experts, then their gates and ups
    for name, (weight, _) in done.items():
        if not name.startswith(known.experts):
            moe.put(reference, name, weight.value())
    x, chosen = moe.entering(reference, known.experts, tokens)
    fused = reference.get_submodule(known.experts)
    for index in range(len(fused.down_proj)):
        name = f"{known.experts}.{index}"
        own = x[(chosen == index).any(1)]
        expected = blend(own, x)
        assert_near(walk.seen[f"{name}.gate_proj"], expected)
        assert_near(walk.seen[f"{name}.up_proj"], expected)
        for kind in ("gate_proj", "up_proj"):
            moe.put(reference, f"{name}.{kind}", done[f"{name}.{kind}"][0].value())
        every = max(1, len(x) // (4 * fused.down_proj.shape[1 if fused.is_transposed else 2]))
        inner = [moe.inner_states(fused, index, states) for states in (own, x[::every])]
        assert_near(walk.seen[f"{name}.down_proj"], blend(*inner))


def assert_near(got: Tensor, expected: Tensor) -> None:
    assert (got.double() - expected).norm() <= LIMIT * expected.norm()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_an_expert_is_rounded_as_it_would_be_alone(family, method):
    model = moe.FAMILIES[family].model(num_hidden_layers=1)
    walk, done = walked(model, method)
    experts = "model.layers.0.mlp.experts"
    fused = model.get_submodule(experts)
    for index in range(len(fused.down_proj)):
        for kind, matrix in moe.matrices(fused, index).items():
            name = f"{experts}.{index}.{kind}"
            alone = method(matrix.contiguous(), walk.seen[name])
            assert torch.equal(done[name][0].record, alone.record), name


@pytest.mark.parametrize(
    ("tokens", "columns", "count"),
    [
        (0, 32, 32),
        (1, 32, 32),
        (96, 32, 32),
        (100, 32, 28),
        (127, 32, 1),
        (128, 32, 0),
        (999, 32, 0),
    ],
)
def test_how_many_tokens_are_borrowed(tokens, columns, count):
    assert borrowed(tokens, columns) == count


def test_lent_tokens_are_evenly_spaced_over_batches():
    batches = [torch.arange(start, stop)[:, None] for start, stop in ((0, 7), (7, 8), (8, 20))]
    entered = ExpertTokens(Experts(moe.mixtral().model.layers[0].mlp.experts), batches)
    for count in (1, 3, 5, 9, 20, 50):
        picked = torch.cat(list(entered.picked(count)))[:, 0].tolist()
        assert picked == list(range(0, 20, max(1, 20 // count))), count


def test_borrowing_is_reported():
    _, _, few = walked_once("mixtral")
    for name, (_, report) in few.items():
        entry = layer_row(report)
        if ".experts." not in name:
            assert not report.fallback and "borrowed" not in report.facts
            continue
        assert report.facts["borrowed"] == borrowed(report.tokens, report.columns)
        assert f"{report.tokens} tokens for {report.columns} columns" in report.fallback
        # the loss is one under the Hessian of the energy, with a bound
        assert report.bound is not None and report.damped_loss <= report.bound
        assert not is_nearest(entry) and entry["relative_loss"] == relative_loss(entry) > 0
    sentences = few_token_sentences({name: layer_row(report) for name, (_, report) in few.items()})
    assert [s.split(":")[0] for s in sentences] == [
        f"model.layers.{index}.mlp.experts" for index in range(2)
    ]
    assert all("4 experts had few tokens" in sentence for sentence in sentences)


def test_experts_with_enough_tokens_borrow_none():
    # the down projection has more columns than the others
    walk, many = walked(moe.mixtral(intermediate_size=32), tokens=MANY)
    assert min(walk.arrivals["model.layers.1.mlp.experts"].values()) >= 4 * 32
    assert not any(report.fallback for _, report in many.values())


def test_an_expert_without_tokens_is_rounded_on_those_of_its_layer():
    known = moe.FAMILIES["deepseek_v3"]
    model = known.model()
    model.get_submodule(known.router).e_score_correction_bias[3] = -1e4
    walk, done = walked(model)
    assert walk.arrivals[known.experts]["3"] == 0
    assert not walk.fallbacks
    # all that enters: any other expert's Hessian without what is its own
    name = f"{known.experts}.3"
    weight, report = done[f"{name}.up_proj"]
    assert report.tokens == 0 and report.facts["borrowed"] == 32
    assert report.fallback.startswith("0 tokens for 32 columns")
    reference = moe.in_double(model)
    for other, (value, _) in done.items():
        if not other.startswith(known.experts):
            moe.put(reference, other, value.value())
    x, _ = moe.entering(reference, known.experts)
    assert_near(walk.seen[f"{name}.up_proj"], moe.moment(x))
    assert done[f"{name}.down_proj"][1].loss > 0


def test_skipped_experts_stay_as_they_are():
    rules = in_blocks(skip=(r"experts\.1\.", r"experts\.2\.gate"))
    walk, done = walked(moe.mixtral(), rules=rules)
    assert not any(".experts.1." in name or ".experts.2.gate" in name for name in done)
    assert "model.layers.0.mlp.experts.2.up_proj" in done
    assert set(walk.arrivals["model.layers.0.mlp.experts"]) == {"0", "2", "3"}


TWO = ("mixtral", "deepseek_v3")  # the others take long
ONE_BLOCK = {
    "qwen3_moe": {"num_hidden_layers": 1, "num_experts": 4},
    "qwen2_moe": {"num_hidden_layers": 1, "num_experts": 4},
    "deepseek_v3": {"num_hidden_layers": 1, "first_k_dense_replace": 0, "n_routed_experts": 4},
}


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=pytest.mark.long if f not in TWO else ()) for f in moe.FAMILIES],
)
def test_the_other_stream_is_the_original_model(family, monkeypatch):
    """ECLQ runs the original model beside: through original experts, wherever they send tokens."""
    model = moe.FAMILIES[family].model(**ONE_BLOCK.get(family, {"num_hidden_layers": 1}))
    ends = []
    hand_on = Passes.hand_on

    def noted(self, outputs, *rest):
        ends.append(list(outputs))
        hand_on(self, iter(ends[-1]), *rest)

    monkeypatch.setattr(Passes, "hand_on", noted)
    expected = []
    hook = model.model.layers[0].register_forward_hook(lambda *args: expected.append(args[2]))
    logits(model)
    hook.remove()
    walk, done = walked(model, ECLQ(bpw=9.5, allocate=False))
    both = ends[len(model.model.layers)]  # the first were of the comparison with the model's own
    drifted, original = (
        torch.cat(part) for part in (both[: len(both) // 2], both[len(both) // 2 :])
    )
    torch.testing.assert_close(original, expected[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(drifted, original, rtol=1e-4, atol=1e-4)
    # experts are rounded towards their own weights, other layers towards a target
    for name, (_, report) in done.items():
        assert ("strength" in report.facts) == (".experts." not in name), name


def test_experts_of_a_layer_are_given_one_rate():
    model = moe.FAMILIES["deepseek_v3"].model(n_routed_experts=4)
    walk = Walk(copy.deepcopy(model), ECLQ(bpw=9.5), TOKENS).prepare()
    before = {name: tensor.clone() for name, tensor in walk.model.state_dict().items()}
    bits = walk.allocate()
    assert set(bits) == {layer.name for layer in walk.layers}
    experts = moe.FAMILIES["deepseek_v3"].experts
    for kind in ("gate_proj", "up_proj", "down_proj"):
        assert len({bits[f"{experts}.{index}.{kind}"] for index in range(4)}) == 1
    mean = sum(bits[la.name] * la.weight().numel() for la in walk.layers)
    assert mean / sum(la.weight().numel() for la in walk.layers) == pytest.approx(9.5, abs=1e-6)
    assert all(torch.equal(before[n], part) for n, part in walk.model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in walk.model.modules())
    # and the walk keeps to it
    stored = {layer.name: (weight.bpw, layer) for layer, weight, _ in walk}
    assert all(bpw <= bits[name] for name, (bpw, _) in stored.items())


def test_all_experts_are_disturbed_at_once():
    """Quiet up projections, all but one expert's, leave a divergence: the loud one's is in it."""
    model = moe.FAMILIES["mixtral"].model()
    trace = trace_model(model, TOKENS)
    names = {layer.name for layer in trace.layers if layer.name.endswith("up_proj")}
    probe = Probe(Placement(model), trace, ECLQ(bpw=9.5), TOKENS, names)
    sensitivities = probe.sensitivities()
    assert list(sensitivities) == [
        f"model.layers.{index}.mlp.experts.up_proj" for index in range(2)
    ]
    weights = trace.layers[-1].weight().numel()
    assert all(cause.weights == 4 * weights for cause in sensitivities.values())
    assert all(cause.divergence > 0 for cause in sensitivities.values())


def test_the_constants_are_those_of_the_documents():
    assert (expert_hessians.LENT, expert_hessians.ENOUGH) == (1, 4)

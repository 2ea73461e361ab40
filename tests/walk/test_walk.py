"""What a walk puts up with, names, counts and refuses, on blocks made for each case."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from nearplane.methods import ECLQ, GPTQ, RTN
from nearplane.model.selection import Rules
from nearplane.types import NearplaneError
from nearplane.walk import walk as walk_file
from nearplane.walk.capture import Call, PausedRun, hidden_of
from nearplane.walk.rounding import Rounder
from nearplane.walk.walk import Walk
from tests.walk import moe
from tests.walk.tiny import TOKENS, Blocks, Residual, in_blocks, linear

# steps that know nothing of inputs, as those of the fallback
METHOD = GPTQ(bits=3, group_size=16, hessian_steps=False)
KEPT = "embed stays as it is, as asked"
ALL_MAY_FALL_BACK = in_blocks(fallback_share=1.0)


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    """Draw the same weights for every test; let five sequences be three batches."""
    torch.manual_seed(0)
    monkeypatch.setattr(walk_file, "BATCH_TOKENS", 48)


def walked(model: nn.Module, rules: Rules | None = None, method=METHOD, tokens: Tensor = TOKENS):
    """Return a finished walk, and weights and reports by name."""
    walk = Walk(model, method, tokens, rules or in_blocks())
    done = list(walk)
    return (
        walk,
        {layer.name: weight for layer, weight, _ in done},
        {layer.name: report for layer, _, report in done},
    )


def rounded_to_nearest(weight: Tensor) -> Tensor:
    return RTN(bits=3, group_size=16)(weight, torch.eye(weight.shape[1])).value()


def second_moment(inputs: Tensor) -> Tensor:
    x = inputs.flatten(0, -2).double()
    return x.T @ x / len(x)


# --- inputs that are not numbers, and inputs that are nothing


@pytest.mark.parametrize("wrong", [math.inf, math.nan])
def test_tokens_that_are_not_finite_are_left_out_and_counted(wrong):
    model = Blocks(Residual(a=linear(), b=linear()), Residual(c=linear()))
    model.embed.weight[7] = wrong
    sevens = int((TOKENS == 7).sum())
    assert sevens
    _, weights, reports = walked(model)
    for name, report in reports.items():
        assert (report.tokens, report.dropped_tokens) == (TOKENS.numel() - sevens, sevens), name
        assert math.isfinite(report.loss) and math.isfinite(report.energy)
        assert torch.isfinite(weights[name].value()).all()


class Loud(nn.Module):
    """hidden + b(a(hidden)), where a makes infinities of finite numbers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = linear(), linear()
        self.a.weight.data.fill_(3e38)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.b(self.a(hidden)).nan_to_num(0, 0, 0)


def test_a_layer_with_no_finite_input_falls_back_and_says_why():
    model = Blocks(Loud(), Residual(c=linear()))
    model.embed.weight.abs_().add_(1)
    b = model.layers[0].b.weight.clone()
    rules = in_blocks(skip=(r"\.a$",), fallback_share=0.5)
    walk, weights, reports = walked(model, rules)
    assert walk.fallbacks == ["layers.0.b"]
    report = reports["layers.0.b"]
    assert (report.tokens, report.dropped_tokens) == (0, TOKENS.numel())
    assert "no token with a finite" in report.fallback
    assert report.void == f"rounded to nearest: {report.fallback}"
    assert report.bound is None
    assert torch.equal(weights["layers.0.b"].value(), rounded_to_nearest(b))
    assert not reports["layers.1.c"].fallback and reports["layers.1.c"].tokens == TOKENS.numel()


def test_inputs_too_large_to_be_squared_fall_back():
    model = Blocks(Residual(a=linear(), b=linear()))
    model.embed.weight.mul_(1e30)
    walk, _, reports = walked(model, ALL_MAY_FALL_BACK)
    assert walk.fallbacks == ["layers.0.a"]
    assert reports["layers.0.a"].tokens == TOKENS.numel()
    assert reports["layers.0.a"].fallback and reports["layers.0.a"].bound is None


def silent_model() -> Blocks:
    """Return a model whose layer a sees nothing but zeros, while b sees numbers."""
    model = Blocks(Residual(a=linear(), b=linear()))
    model.layers[0].a.bias = nn.Parameter(torch.ones(16), requires_grad=False)
    model.embed.weight.zero_()
    return model


def test_a_layer_with_only_zeros_falls_back_and_keeps_its_weights():
    model = silent_model()
    before = model.layers[0].a.weight.clone()
    walk, weights, reports = walked(model, ALL_MAY_FALL_BACK)
    assert walk.fallbacks == ["layers.0.a"]
    assert reports["layers.0.a"].dead_columns == 16
    assert reports["layers.0.a"].tokens == TOKENS.numel()
    assert "non-zero input" in reports["layers.0.a"].fallback
    assert torch.equal(weights["layers.0.a"].value(), rounded_to_nearest(before))
    assert weights["layers.0.a"].value().abs().sum() > 0
    assert not reports["layers.0.b"].fallback


@pytest.mark.parametrize("share, passes", [(0.49, False), (0.5, True)])
def test_too_many_fallbacks_are_refused(share, passes):
    rules = in_blocks(fallback_share=share)
    if passes:
        assert walked(silent_model(), rules)[0].fallbacks == ["layers.0.a"]
        return
    with pytest.raises(NearplaneError, match=r"1 of 2 layers.*layers\.0\.a: no token"):
        walked(silent_model(), rules)


def test_by_default_one_layer_in_twenty_may_fall_back():
    assert Rules().fallback_share == 0.05
    with pytest.raises(NearplaneError, match=r"1 of 2 layers"):
        walked(silent_model())


def test_dead_columns_are_rounded_to_nearest():
    """PITFALLS 20: an input that is always zero says nothing of a weight, and zeroes none."""
    model = Blocks(Residual(a=linear()))
    dead = [2, 3, 11]
    model.embed.weight[:, dead] = 0
    before = model.layers[0].a.weight.clone()
    walk, weights, reports = walked(model)
    value, nearest = weights["layers.0.a"].value(), rounded_to_nearest(before)
    assert reports["layers.0.a"].dead_columns == 3
    assert torch.equal(value[:, dead], nearest[:, dead])
    assert value[:, dead].abs().sum() > 0
    assert not torch.equal(value, nearest)
    assert not walk.fallbacks


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_before_a_layer_is_done(wrong):
    model = Blocks(Residual(a=linear()), Residual(b=linear()))
    model.layers[1].b.weight[3, 3] = wrong
    before = model.layers[0].a.weight.clone()
    with pytest.raises(NearplaneError, match=r"layers\.1\.b holds NaN or infinite weights"):
        Walk(model, METHOD, TOKENS, in_blocks()).prepare()
    assert torch.equal(model.layers[0].a.weight, before)


def test_wrong_weights_that_are_skipped_do_no_harm():
    model = Blocks(Residual(a=linear()), Residual(b=linear()))
    model.layers[1].b.weight[3, 3] = math.nan
    assert list(walked(model, in_blocks(skip=(r"\.b$",)))[1]) == ["layers.0.a"]


# --- parts that are left out


class Strange(nn.Module):
    """A linear layer beside parts that hold matrices but are none."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.zeros(2, 16, 16))
        self.convolution = nn.Conv1d(16, 16, 1)
        self.norm = nn.LayerNorm(16)
        self.a, self.unused = linear(), linear()

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.a(self.norm(hidden))


def test_parts_that_cannot_be_quantized_are_named():
    walk, weights, _ = walked(Blocks(Strange()))
    assert list(weights) == ["layers.0.a"]
    assert walk.left_out == [
        "layers.0 (Strange) cannot be quantized",
        "layers.0.convolution (Conv1d) cannot be quantized",
        "layers.0.unused was not reached by any token",
        KEPT,
    ]


def test_strict_refuses_parts_that_cannot_be_quantized():
    with pytest.raises(NearplaneError, match=r"layers\.0 \(Strange\), layers\.0\.conv"):
        Walk(Blocks(Strange()), METHOD, TOKENS, in_blocks(strict=True)).prepare()
    walked(Blocks(Residual(a=linear())), in_blocks(strict=True))


@pytest.mark.parametrize(
    "pattern, left",
    [
        (r"\.b$", ["layers.0.a", "layers.0.c", "layers.1.a"]),
        (r"layers\.0\.a", ["layers.0.b", "layers.0.c", "layers.1.a", "layers.1.b"]),
        (r"^layers\.0\.", ["layers.1.a", "layers.1.b"]),
        (r"nothing", ["layers.0.a", "layers.0.b", "layers.0.c", "layers.1.a", "layers.1.b"]),
    ],
)
def test_skipped_layers_stay_as_they_are(pattern, left):
    model = Blocks(Residual(a=linear(), b=linear(), c=linear()), Residual(a=linear(), b=linear()))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    walk, weights, _ = walked(model, in_blocks(skip=(pattern,)))
    assert sorted(weights) == left
    skipped = {f"layers.{i}.{n}" for i, n in [(0, "a"), (0, "b"), (0, "c"), (1, "a"), (1, "b")]}
    skipped -= set(left)
    assert walk.left_out == [*(f"{name} is skipped as asked" for name in sorted(skipped)), KEPT]
    for name in skipped:
        assert torch.equal(model.get_submodule(name).weight, before[f"{name}.weight"])


class Together(nn.Module):
    """hidden + a(hidden) + b(hidden): one stage."""

    def __init__(self):
        super().__init__()
        self.a, self.b = linear(), linear()

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.a(hidden) + self.b(hidden)


@pytest.mark.parametrize("skipped, kept", [("a", "b"), ("b", "a")])
def test_one_layer_of_a_stage_is_skipped(skipped, kept):
    torch.manual_seed(3)
    _, weights, _ = walked(Blocks(Together()), in_blocks(skip=(rf"\.{skipped}$",)))
    assert list(weights) == [f"layers.0.{kept}"]
    torch.manual_seed(3)
    whole = walked(Blocks(Together()))[1]
    assert torch.equal(weights[f"layers.0.{kept}"].code, whole[f"layers.0.{kept}"].code)


def test_skipping_everything_is_refused():
    with pytest.raises(NearplaneError, match="every layer is skipped"):
        Walk(Blocks(Residual(a=linear())), METHOD, TOKENS, in_blocks(skip=(".",))).prepare()


def test_a_model_without_blocks_is_refused():
    class Bare(Blocks):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.LayerNorm(16)])

    with pytest.raises(NearplaneError, match="Bare has no ModuleList or Sequential of blocks"):
        Walk(Bare(), METHOD, TOKENS, in_blocks()).prepare()


# --- modules that stand or run in more than one place


def test_the_hessian_of_a_layer_that_runs_twice_sums_both_calls(monkeypatch):
    """PITFALLS 12. Both inputs are those that the layer had before it was rounded."""
    model = Blocks(Residual(order="aba", a=linear(), b=linear()), Residual(c=linear()))
    a, b = (model.layers[0].get_submodule(name).weight.double() for name in "ab")
    hidden = model.embed(TOKENS).double()
    later = ((hidden @ a.T).tanh() @ b.T).tanh()
    seen = {}

    class Noting(Rounder):
        def basis_of(self, inputs, layers):
            seen[layers[0].name] = inputs.hessian.clone()
            return super().basis_of(inputs, layers)

    monkeypatch.setattr(walk_file, "Rounder", Noting)
    done = {
        layer.name: (weight, report)
        for layer, weight, report in Walk(model, METHOD, TOKENS, in_blocks())
    }
    assert list(done) == ["layers.0.a", "layers.0.b", "layers.1.c"]
    assert done["layers.0.a"][1].tokens == 2 * TOKENS.numel()
    assert done["layers.0.b"][1].tokens == TOKENS.numel()
    # float32 against float64, see test_families.py
    torch.testing.assert_close(
        seen["layers.0.a"].double(), second_moment(torch.cat([hidden, later])), rtol=0, atol=1e-6
    )
    new = [done[f"layers.0.{name}"][0].value().double() for name in "ab"]
    torch.testing.assert_close(
        seen["layers.0.b"].double(), second_moment((hidden @ new[0].T).tanh()), rtol=0, atol=1e-6
    )
    state = hidden
    for index in (0, 1, 0):
        state = (state @ new[index].T).tanh()
    torch.testing.assert_close(
        seen["layers.1.c"].double(), second_moment(hidden + state), rtol=0, atol=1e-5
    )


def test_one_layer_under_two_names_of_a_block_is_done_once():
    shared = linear()
    walk, weights, reports = walked(Blocks(Residual(a=shared, b=linear(), c=shared)))
    assert sorted(weights) == ["layers.0.a", "layers.0.b"]
    assert reports["layers.0.a"].tokens == 2 * TOKENS.numel()


def across() -> tuple[Blocks, Tensor]:
    """Return a model whose two blocks share layer a, and the weight of a."""
    shared = linear()
    blocks = Residual(a=shared, b=linear()), Residual(a=shared, c=linear())
    return Blocks(*blocks), shared.weight.detach().clone()


def test_a_layer_of_two_blocks_is_quantized_once():
    model, original = across()
    walk, weights, reports = walked(model)
    assert list(weights) == ["layers.0.a", "layers.0.b", "layers.1.c"]
    assert {report.tokens for report in reports.values()} == {TOKENS.numel()}
    assert not walk.fallbacks
    error = float((original - weights["layers.0.a"].value()).square().sum())
    assert reports["layers.0.a"].weight_error == pytest.approx(error, rel=1e-5)


class Experts(nn.Module):
    """hidden + the expert that its first number chooses; 0 gets those above zero."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([linear(), linear()])

    def forward(self, hidden: Tensor) -> Tensor:
        tokens = hidden.flatten(0, 1)
        chosen = (tokens[:, 0] <= 0).long()
        out = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            if (chosen == index).any():
                out[chosen == index] = expert(tokens[chosen == index])
        return hidden + out.view_as(hidden)


def expert_model(tokens: Tensor) -> Blocks:
    """Return a model whose second expert is chosen by `tokens` alone."""
    model = Blocks(Experts())
    model.embed.weight[:, 0] = 1.0
    model.embed.weight[tokens.unique(), 0] = -1.0
    return model


def test_experts_see_their_own_tokens():
    few = TOKENS[:, 0]
    _, weights, reports = walked(expert_model(few))
    chosen = int(torch.isin(TOKENS, few).sum())
    assert reports["layers.0.experts.0"].tokens == TOKENS.numel() - chosen
    assert reports["layers.0.experts.1"].tokens == chosen


def test_an_expert_that_no_token_reaches_is_named():
    walk, weights, _ = walked(expert_model(torch.tensor([], dtype=torch.long)))
    assert list(weights) == ["layers.0.experts.0"]
    assert walk.left_out == ["layers.0.experts.1 was not reached by any token", KEPT]


@pytest.mark.parametrize("place", [(0, 0), (4, 23)])
def test_an_expert_that_some_batches_reach_is_quantized(place):
    tokens = TOKENS.where(TOKENS != 60, 59).clone()
    tokens[place] = 60
    _, _, reports = walked(expert_model(torch.tensor([60])), tokens=tokens)
    assert reports["layers.0.experts.1"].tokens == 1


class Restless(nn.Module):
    """A block that runs its layers in another order, or not at all, on all but the first tokens."""

    def __init__(self, then: str):
        super().__init__()
        self.a, self.b, self.then = linear(), linear(), then

    def forward(self, hidden: Tensor) -> Tensor:
        for name in "ab" if (hidden[0, 0] == hidden[0, 0, 0]).all() else self.then:
            hidden = self.get_submodule(name)(hidden)
        return hidden


def restless(then: str) -> Blocks:
    """Return a model of one such block, which knows the first tokens by their equal numbers."""
    model = Blocks(Restless(then))
    model.embed.weight[TOKENS[0, 0]] = 0.5
    return model


@pytest.mark.parametrize("batch", [24, 48, 72])
def test_a_block_that_changes_its_order_is_refused(batch, monkeypatch):
    monkeypatch.setattr(walk_file, "BATCH_TOKENS", batch)
    with pytest.raises(NearplaneError, match="in another order than before"):
        walked(restless("ba"))


@pytest.mark.parametrize("then", ["a", "b", ""])
def test_a_layer_that_some_batches_do_not_reach_gets_the_others_tokens(then, monkeypatch):
    monkeypatch.setattr(walk_file, "BATCH_TOKENS", 24)
    _, _, reports = walked(restless(then))
    for name in "ab":
        assert reports[f"layers.0.{name}"].tokens == (TOKENS.numel() if name in then else 24)


def test_a_paused_run_stops_before_each_layer():
    block = Residual(a=linear(), b=linear(), c=linear())
    hidden = torch.randn(2, 3, 16)
    run = PausedRun(block, [block.a, block.c], Call((hidden,), {}))
    assert torch.equal(run.to(block.a), hidden)
    block.a.weight.data.zero_()
    assert torch.equal(run.to(block.c), torch.zeros(2, 3, 16))
    assert torch.equal(run.finish(), hidden)
    assert not any(layer._forward_pre_hooks for layer in (block.a, block.b, block.c))


def test_paused_runs_do_not_stop_each_other():
    block = Residual(a=linear(), b=linear())
    inputs = [torch.randn(1, 3, 16) for _ in range(3)]
    runs = [PausedRun(block, [block.a, block.b], Call((x,), {})) for x in inputs]
    for x, run in zip(inputs, runs, strict=True):
        assert torch.equal(run.to(block.a), x)
    for run in reversed(runs):
        run.to(block.b)
    with torch.no_grad():
        for x, run in zip(inputs, runs, strict=True):
            assert torch.equal(run.finish(), block(x))


def test_a_walk_leaves_no_hook_behind():
    model = Blocks(Together(), Residual(a=linear(), b=linear()))
    walked(model)
    for module in model.modules():
        assert not module._forward_pre_hooks and not module._forward_hooks
        assert "forward" not in vars(module)


def test_a_block_that_is_called_again_runs_with_its_rounded_weights():
    """And in the original stream with its own: the inputs of `b` are compared with a plain run."""
    block, behind = Residual(a=linear()), Residual(b=linear())
    model = Blocks(block, behind, block)
    plain = copy.deepcopy(model)
    walk = Walk(model, ECLQ(bpw=9.5, allocate=False), TOKENS, in_blocks(), sampled=True)
    weights = {layer.name: weight for layer, weight, _ in walk}
    assert list(weights) == ["layers.0.a", "layers.1.b"]
    plain.layers[0].a.weight.data.copy_(weights["layers.0.a"].value())
    plain.layers[1].b.weight.data.copy_(weights["layers.1.b"].value())
    with torch.no_grad():
        expected = plain(walk.prepared.sample.seen.tokens)
    assert hidden_of(walk.prepared.sample.seen.end).equal(hidden_of(expected))


# --- what a walk does, and when


class Counting(Blocks):
    """Blocks that count their forward passes."""

    passes = 0

    def forward(self, input_ids, use_cache=False):
        self.passes += 1
        return super().forward(input_ids, use_cache)


def test_constructing_a_walk_does_nothing():
    model = moe.FAMILIES["mixtral"].model(tie_word_embeddings=True)
    before = {name: (type(m), id(m)) for name, m in model.named_modules()}
    counting = Counting(Residual(a=linear()))
    for each in (model, counting):
        Walk(each, METHOD, TOKENS, in_blocks())
    assert before == {name: (type(m), id(m)) for name, m in model.named_modules()}
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.config.tie_word_embeddings and counting.passes == 0
    walk = Walk(counting, METHOD, TOKENS, in_blocks()).prepare()
    # the model's own, two that pause at its blocks, and one without linear layers
    assert counting.passes == 4 and [layer.name for layer in walk.layers] == ["layers.0.a"]
    with pytest.raises(ValueError, match="not prepared"):
        _ = Walk(counting, METHOD, TOKENS, in_blocks()).layers


def test_a_forward_that_a_block_has_of_its_own_stays():
    """As accelerate's hooks give it; and it is what runs."""
    model = Blocks(Residual(a=linear()), Residual(b=linear()))
    block, calls = model.layers[0], []
    own = block.forward
    block.forward = hooked = lambda *args, **kwargs: calls.append(1) or own(*args, **kwargs)
    list(Walk(model, METHOD, TOKENS, in_blocks()))
    assert block.__dict__["forward"] is hooked and calls
    assert "forward" not in model.layers[1].__dict__

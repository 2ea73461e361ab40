"""Two streams: the original one is the original model's, and lags are what hidden states lost."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from nearplane.methods import ECLQ
from nearplane.walk import walk as walk_file
from nearplane.walk.input_statistics import HELD_OUT, StreamTokens, flat, sum_both_streams
from nearplane.walk.rms_norm import before_norm
from nearplane.walk.streams import StageInputs, Streams
from nearplane.walk.trace import trace_model
from nearplane.walk.walk import Walk
from tests.walk.tiny import FAMILIES, TOKENS, Blocks, Residual, in_blocks, linear

METHOD = ECLQ(bpw=9.5, allocate=False)
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
# layers whose output blocks add to their hidden states, and what gives it
SELF = {"self_attn.o_proj": "self_attn.o_proj", "mlp.down_proj": "mlp.down_proj"}
ADDED = {
    "llama": SELF,
    "phi3": SELF,
    "gpt2": {"attn.c_proj": "attn.c_proj", "mlp.c_proj": "mlp.c_proj"},
    "opt": {"self_attn.out_proj": "self_attn.out_proj", "fc2": "fc2"},
    "gemma3": {
        "self_attn.o_proj": "post_attention_layernorm",
        "mlp.down_proj": "post_feedforward_layernorm",
    },
}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Let five sequences be three batches."""
    monkeypatch.setattr(walk_file, "BATCH_TOKENS", 48)


def given_in_walk(model, monkeypatch, method=METHOD) -> dict[str, list[StageInputs]]:
    """Return what every stage was given, under the name of its first layer."""
    seen: dict[str, list[StageInputs]] = {}

    taken = Streams.given

    def noting(self, stage):
        for given in taken(self, stage):
            seen.setdefault(stage.layers[0].name, []).append(given)
            yield given

    walk = Walk(model, method, TOKENS, in_blocks()).prepare()
    monkeypatch.setattr(Streams, "given", noting)
    list(walk)
    return seen


def inputs_of_model(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Return what the layers are given in a plain pass of the model."""
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(name, args[0])
        )
        for name in names
    ]
    with torch.no_grad():
        model(input_ids=TOKENS, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


@every_family
def test_the_original_stream_is_the_original_model(family, monkeypatch):
    """Bit by bit would be too much: batches of two and of five are summed in other orders."""
    model = family.model()
    expected = inputs_of_model(copy.deepcopy(model), [s[0] for s in family.stage_names(model)])
    seen = given_in_walk(model, monkeypatch)
    for name, givens in seen.items():
        original = torch.cat([flat(given.original) for given in givens])
        torch.testing.assert_close(original, flat(expected[name]), rtol=1e-4, atol=1e-4)
    # and the other stream has drifted from it
    last = list(seen)[-1]
    assert not torch.equal(seen[last][0].inputs, seen[last][0].original)


@pytest.mark.parametrize("name", ADDED)
def test_layers_that_are_added_are_found(name):
    model = FAMILIES[name].model()
    blocks = FAMILIES[name].blocks
    expected = {
        f"{blocks}.{index}.{layer}": model.get_submodule(f"{blocks}.{index}.{adder}")
        for index in range(model.config.num_hidden_layers)
        for layer, adder in ADDED[name].items()
    }
    assert trace_model(model, TOKENS).added == expected


def test_a_scaled_output_is_not_added():
    class Scaled(Residual):
        def forward(self, hidden):
            return hidden + 2 * self.a(hidden)

    assert trace_model(Blocks(Scaled(a=linear())), TOKENS).added == {}


def test_lags_are_what_hidden_states_have_lost(monkeypatch):
    """In a llama: nothing in front of the first o, and all that o changed in front of down."""
    model = FAMILIES["llama"].model()
    original = copy.deepcopy(model)
    values = {}
    for layer, weight, _ in Walk(copy.deepcopy(model), METHOD, TOKENS, in_blocks()):
        values[layer.name] = weight.value()
    seen = given_in_walk(model, monkeypatch)
    assert all(g.lag.abs().max() == 0 for g in seen["model.layers.0.self_attn.o_proj"])
    assert all(g.lag is None for g in seen["model.layers.0.self_attn.q_proj"])
    # behind attention, which is what the next norm is given
    rounded = copy.deepcopy(original)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        full = f"model.layers.0.self_attn.{name}"
        rounded.get_submodule(full).weight.data.copy_(values[full])
    behind = [
        inputs_of_model(m, ["model.layers.0.post_attention_layernorm"]).popitem()[1]
        for m in (original, rounded)
    ]
    lag = torch.cat([given.lag for given in seen["model.layers.0.mlp.down_proj"]])
    torch.testing.assert_close(lag, behind[0] - behind[1], rtol=1e-3, atol=1e-4)


def test_a_change_behind_a_norm():
    """norm(y + before_norm(c, y)) has the direction of norm(y) + c, where no gain is small."""
    norm = Gemma3RMSNorm(32)
    norm.weight.data.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(1)
    y, change = 5 * torch.randn(7, 32, generator=random), torch.randn(7, 32, generator=random) / 20
    with torch.no_grad():
        found = norm(y + before_norm(change, y, norm))
        wished = norm(y) + change
        before = norm(y)
    angle = [1 - torch.cosine_similarity(x, wished) for x in (found, before)]
    # 1 % of the gain's square is what FLOOR holds back, and the angle goes with the square
    assert (angle[0] < 1e-3 * angle[1]).all()


def test_without_cross_only_one_stream_is_run(monkeypatch):
    model = FAMILIES["llama"].model()
    seen = given_in_walk(model, monkeypatch, ECLQ(bpw=9.5, cross=False, allocate=False))
    assert all(given.original is None for givens in seen.values() for given in givens)


def test_a_layer_that_runs_twice_is_rounded_without_an_aim():
    a, b = linear(), linear()
    walk = Walk(Blocks(Residual("aba", a=a, b=b)), METHOD, TOKENS, in_blocks())
    done = {layer.name: weight for layer, weight, _ in walk}
    assert "strength" not in done["layers.0.a"].facts
    assert "strength" in done["layers.0.b"].facts


def batches(count: int, tokens: int = 40, columns: int = 6, rows: int = 3) -> list[StageInputs]:
    random = torch.Generator().manual_seed(0)
    parts = torch.randn(count, 2, tokens, columns, generator=random)
    lags = torch.randn(count, tokens, rows, generator=random)
    return [StageInputs(*x, lag) for x, lag in zip(parts, lags, strict=True)]


@pytest.mark.parametrize("count", [1, 2, HELD_OUT, 9])
def test_moments_add_up(count):
    """Fitted and held-out tokens are apart and together all; sums in float32 agree to 1e-5."""
    given = batches(count)
    seen = sum_both_streams(6, 3, given, count)
    x, y, lag = (torch.cat([getattr(g, n) for g in given]) for n in StageInputs.__annotations__)
    total = len(x)
    assert seen.tokens == total and seen.dropped == 0
    close = dict(rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen.hessian, x.T @ x / total, **close)
    held = 10 * count if count < HELD_OUT else 40 * (count // HELD_OUT)
    apart = (seen.parts.fitted.cross, seen.parts.held.cross)
    # Σ x yᵀ of independent normal numbers: every one of 36 entries has the variance `tokens`
    for part, tokens in zip(apart, (total - held, held), strict=True):
        assert part.norm() == pytest.approx(6 * tokens**0.5, rel=0.6)
    mixed = sum(apart) / total
    whole = seen.parts.joined(seen)
    torch.testing.assert_close(mixed, whole.cross, **close)
    torch.testing.assert_close(whole.cross, x.T @ y / total, **close)
    torch.testing.assert_close(whole.lag, lag.T @ x / total, **close)
    assert whole.hessian is seen.hessian
    with pytest.raises(ValueError, match="joined before"):
        seen.parts.joined(seen)


@pytest.mark.parametrize("name", StageInputs.__annotations__)
def test_tokens_that_are_not_finite_in_either_stream_are_left_out(name):
    given = batches(2)
    getattr(given[1], name)[7, 1] = torch.inf
    seen = sum_both_streams(6, 3, given, 2)
    assert (seen.tokens, seen.dropped) == (79, 1)
    whole = seen.parts.joined(seen)
    assert torch.isfinite(whole.cross).all() and torch.isfinite(whole.lag).all()
    assert len(StreamTokens.of(given[1]).finite().drifted) == 39


class RoutedTokens(nn.Module):
    """hidden + a(hidden) + b of the tokens whose first number is positive, as experts have it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = linear(), linear()

    def forward(self, hidden):
        hidden = hidden + self.a(hidden)
        chosen = hidden[..., 0] > 0
        if chosen.any():
            hidden = hidden.masked_scatter(chosen[..., None], self.b(hidden[chosen]))
        return hidden


def test_other_tokens_in_the_other_stream_are_no_drift():
    """StreamTokens that are routed elsewhere once layers are rounded cannot be compared."""
    torch.manual_seed(5)
    model = Blocks(RoutedTokens(), RoutedTokens(), RoutedTokens())
    done = {la.name: w for la, w, _ in Walk(model, ECLQ(7.5, allocate=False), TOKENS, in_blocks())}
    assert {name.split(".")[-1] for name in done} == {"a", "b"}
    assert all(torch.isfinite(w.value()).all() for w in done.values())


def test_drift_is_made_up_for():
    """On other tokens than the calibration's, logits come nearer to the original model's."""
    original = FAMILIES["llama"].model()
    tokens = torch.randint(2, 61, (96, 24), generator=torch.Generator().manual_seed(2))
    apart = []
    for cross in (True, False):
        rounded = copy.deepcopy(original)
        walk = Walk(
            copy.deepcopy(original), ECLQ(4.0, cross=cross, allocate=False), tokens, in_blocks()
        )
        for layer, weight, _ in walk:
            rounded.get_submodule(layer.name).weight.data.copy_(weight.value())
        with torch.no_grad():
            logits = [model(input_ids=TOKENS).logits for model in (original, rounded)]
        apart.append(float((logits[0] - logits[1]).square().mean()))
    assert apart[0] < 0.9 * apart[1]

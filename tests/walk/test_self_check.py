"""The walk's passes are the model's own forward pass, or there is no walk."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nearplane.methods import ECLQ, HPTQ
from nearplane.types import NearplaneError
from nearplane.walk import walk as walk_file
from nearplane.walk.placement import ActivationLimits, Placement
from nearplane.walk.self_check import SamplePass
from nearplane.walk.sensitivity import Probe, compared_of
from nearplane.walk.streams import Streams
from nearplane.walk.trace import trace_model
from nearplane.walk.walk import Walk
from tests.walk.tiny import TOKENS, Blocks, Residual, in_blocks, linear

METHODS = [HPTQ(bpw=9.5), ECLQ(bpw=9.5, allocate=False)]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
# everything stays in memory; runs start anew for every stage; and hidden states are in a file
LIMITS = [ActivationLimits(), ActivationLimits(0)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Let five sequences be three batches; draw the same weights for every test."""
    torch.manual_seed(0)
    monkeypatch.setattr(walk_file, "BATCH_TOKENS", 48)


@dataclass
class Output:
    """What a block may return: hidden states among other things."""

    hidden: Tensor
    more: Any = None


class Handing(nn.Module):
    """Blocks that hand things to each other: `kind` says how."""

    def __init__(self, kind: str):
        super().__init__()
        self.a, self.b, self.kind = linear(), linear(), kind

    def forward(self, hidden: Tensor, given: Any = None, shared: Any = None, log: Any = None):
        if self.kind == "dictionary":
            given, shared["last"] = shared.get("last", given), self.b(hidden)
        if self.kind == "list":
            given = shared[-1] if shared else given
            shared.append(self.b(hidden).tanh())
        if self.kind == "object":
            given = getattr(shared, "last", given)
            shared.last = self.b(hidden).tanh()
        state = self.a(hidden if given is None else hidden + given).tanh()
        out = hidden + state
        made = self.b(out).tanh()
        return {
            "tuple": (out, None, made),
            "list of two": [out, made],
            "dataclass": Output(out, made),
        }.get(self.kind, out)


class Shared:
    """An object that blocks share."""


class Passing(Blocks):
    """A model that passes on what its blocks return besides hidden states."""

    def __init__(self, kind: str):
        super().__init__(*(Handing(kind) for _ in range(3)))
        self.kind, self.scale = kind, nn.Parameter(torch.tensor(1.1), requires_grad=False)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Tensor:
        hidden, given = self.embed(input_ids), None
        shared = {"dictionary": {}, "list": [], "object": Shared()}.get(self.kind)
        for block in self.layers:
            output = block(hidden * self.scale, given, shared=shared)
            if isinstance(output, Output):
                hidden, given = output.hidden, output.more
            elif isinstance(output, tuple | list):
                hidden, given = output[0], output[-1]
            else:
                hidden = output
        return hidden


KINDS = ["tuple", "list of two", "dataclass", "dictionary", "list", "object", "tensor"]


@every_method
@pytest.mark.parametrize("limits", LIMITS, ids=["paused", "repeated"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_blocks_hand_to_each_other(kind, limits, method, tmp_path):
    """The quantized stream ends where the model with the quantized weights does, bit by bit."""
    model = Passing(kind)
    plain = copy.deepcopy(model)
    if limits.paused == 0:
        limits = ActivationLimits(0, tmp_path)
    place = Placement(model, limits=limits)
    walk = Walk(model, method, TOKENS, in_blocks(), placement=place, sampled=True)
    values = {layer.name: weight.value() for layer, weight, _ in walk}
    assert len(values) == 6
    for name, value in values.items():
        plain.get_submodule(name).weight.data.copy_(value)
    seen = walk.prepared.sample.seen
    with torch.no_grad():
        assert seen.end[0].equal(plain(seen.tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_in_one_layer_goes_where_the_model_would_have_it_go(kind):
    """Its divergence is that of the whole model with the error in it; float32 sums to 1e-3."""
    model = Passing(kind)
    layers = {layer.name for layer in trace_model(model, TOKENS).layers}
    for name in ("layers.0.b", "layers.1.a"):
        probe = Probe(Placement(model), trace_model(model, TOKENS), METHODS[1], TOKENS, layers)
        found = probe.sensitivities()[name].divergence
        again = Probe(Placement(model), trace_model(model, TOKENS), METHODS[1], TOKENS, layers)
        whole, errors = again.begun(TOKENS), {}
        for index in range(3):
            errors |= {layer.name: (layer, error) for layer, error in again.errors(index, whole)}
        layer, error = errors[name]
        some, at = again.compared_tokens, compared_of(again.compared_tokens.shape[1])
        with torch.no_grad():
            p = torch.log_softmax(model(some)[:, at], -1)
            weight = layer.stored.data.clone()
            layer.stored.data += error
            q = torch.log_softmax(model(some)[:, at], -1)
            layer.stored.data = weight
        assert found == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)


class Counting(nn.Module):
    """A block that depends on how often it was called, or on what it was given before."""

    def __init__(self, kind: str):
        super().__init__()
        self.a, self.kind, self.calls, self.before = linear(), kind, 0, None

    def forward(self, hidden: Tensor) -> Tensor:
        out = hidden + self.a(hidden).tanh()
        if self.kind == "calls":
            out = out * (1 + self.calls)
        elif self.before is not None:
            out = out + self.before.mean()
        self.calls, self.before = self.calls + 1, hidden.detach().clone()
        return out


@pytest.mark.parametrize("kind", ["calls", "before"])
def test_a_block_with_a_state_of_its_own_is_refused_by_name(kind):
    model = Blocks(Residual(a=linear()), Counting(kind), Residual(a=linear()))
    with pytest.raises(NearplaneError, match=r"layers\.1 computes something else"):
        Walk(model, METHODS[0], TOKENS, in_blocks()).prepare()


class InPlace(nn.Module):
    """A block that changes its hidden states where they are."""

    def __init__(self):
        super().__init__()
        self.a = linear()

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.add_(self.a(hidden).tanh())


@every_method
@pytest.mark.parametrize("limits", LIMITS, ids=["paused", "repeated"])
def test_a_block_that_changes_its_input_in_place(limits, method, monkeypatch):
    """Its own copy is what it changes: the other stream and later runs are given what it was."""
    model = Blocks(InPlace(), InPlace())
    plain = copy.deepcopy(model)
    given = {}
    taken = Streams.given
    walk = Walk(
        model, method, TOKENS, in_blocks(), placement=Placement(model, limits=limits)
    ).prepare()

    def noting(self, stage):
        for batch in taken(self, stage):
            # the block will change it
            given.setdefault(stage.layers[0].name, []).append(copy.deepcopy(batch))
            yield batch

    monkeypatch.setattr(Streams, "given", noting)
    values = {layer.name: weight.value() for layer, weight, _ in walk}
    with torch.no_grad():
        hidden = plain.embed(TOKENS)
        behind = hidden + plain.layers[0].a(hidden).tanh()
        plain.layers[0].a.weight.data.copy_(values["layers.0.a"])
        drifted = hidden + plain.layers[0].a(hidden).tanh()
    second = given["layers.1.a"]
    torch.testing.assert_close(torch.cat([batch.inputs for batch in second]), drifted)
    if method.compensates:
        torch.testing.assert_close(torch.cat([batch.original for batch in second]), behind)


class Failing(nn.Module):
    """A block that cannot run."""

    def __init__(self, error: Exception):
        super().__init__()
        self.a, self.error = linear(), error

    def forward(self, hidden: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize("error", [ValueError("too odd"), KeyError("x"), RuntimeError("a\nb")])
def test_an_error_of_a_block_names_it(error):
    model = Blocks(Residual(a=linear()), Failing(error))
    with pytest.raises(NearplaneError, match=r"layers\.1 \(Failing\) failed: ") as caught:
        Walk(model, METHODS[0], TOKENS, in_blocks()).prepare()
    assert caught.value.__cause__ is error and "\n" not in str(caught.value)


def test_a_sample_follows_the_walk_only_if_asked():
    walk = Walk(Blocks(Residual(a=linear())), METHODS[0], TOKENS, in_blocks())
    assert list(walk) and walk.prepared.sample is None
    walk = Walk(Blocks(Residual(a=linear())), METHODS[0], TOKENS, in_blocks(), sampled=True)
    assert list(walk) and isinstance(walk.prepared.sample, SamplePass)

"""Models with code of their own: quantized as they compute, or refused in one sentence."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from nearplane.evaluate.perplexity import losses
from nearplane.methods import ECLQ, HPTQ
from nearplane.model.blocks import find_blocks
from nearplane.model.meta_run import meta_run
from nearplane.model.selection import select
from nearplane.types import NearplaneError
from nearplane.walk.walk import Walk
from tests.walk.tiny import TOKENS, Blocks, Residual, in_blocks, linear

METHODS = [HPTQ(bpw=9.5), ECLQ(bpw=9.5, allocate=False)]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class ByName(nn.Module):
    """A block whose layer is called by name, as `kind` says, on what holds the hidden states."""

    def __init__(self, kind: str):
        super().__init__()
        self.a, self.kind = linear(), kind

    def forward(self, x: Any) -> Any:
        hidden = {"list": lambda: x[0], "dict": lambda: x["h"], "slots": lambda: x.hidden}
        h = hidden.get(self.kind, lambda: x)()
        out = h + self.a(input=h).tanh()
        made = {"list": lambda: [out], "dict": lambda: {"h": out}, "slots": lambda: Slots(out)}
        return made.get(self.kind, lambda: out)()


@dataclass(slots=True)
class Slots:
    hidden: Tensor


class Odd(Blocks):
    """A model of such blocks, which takes nothing but tokens and returns a tuple."""

    def __init__(self, kind: str):
        super().__init__(*(ByName(kind) for _ in range(2)))
        self.kind = kind

    def forward(self, input_ids: Tensor) -> Any:
        h: Any = self.embed(input_ids)
        x = {"list": lambda: [h], "dict": lambda: {"h": h}, "slots": lambda: Slots(h)}
        x = x.get(self.kind, lambda: h)()
        for block in self.layers:
            x = block(x)
        h = {"list": lambda: x[0], "dict": lambda: x["h"], "slots": lambda: x.hidden}
        return (h.get(self.kind, lambda: x)(), "more")


@every_method
@pytest.mark.parametrize("kind", ["tensor", "list", "dict", "slots"])
def test_layers_called_by_name_on_hidden_states_inside_of_objects(kind, method):
    model = Odd(kind)
    plain = copy.deepcopy(model)
    walk = Walk(model, method, TOKENS, in_blocks(), sampled=True)
    values = {layer.name: weight.value() for layer, weight, _ in walk}
    assert list(values) == ["layers.0.a", "layers.1.a"]
    for name, value in values.items():
        plain.get_submodule(name).weight.data.copy_(value)
    seen = walk.prepared.sample.seen
    with torch.no_grad():
        assert seen.end[0].equal(plain(seen.tokens)[0])


def test_losses_of_a_model_that_returns_a_tuple():
    model = Odd("tensor")
    with torch.no_grad():
        logits = model(TOKENS)[0]
    expected = nn.functional.cross_entropy(logits[:, :-1].mT, TOKENS[:, 1:] % 16, reduction="none")
    found = losses(model, TOKENS % 16, TOKENS.shape[1] - 1)
    assert found.shape == expected.shape and found.isfinite().all()


def own_weight(linear_: nn.Linear) -> nn.Linear:
    linear_.forward = lambda x: x  # pyright: ignore - as some libraries do
    return linear_


class Noting(nn.Linear):
    """A linear layer that is asked for more than its product."""

    def gain(self) -> float:
        return 2.0


UNLIKE = {
    "weight norm": lambda: parametrizations.weight_norm(linear()),
    "spectral norm": lambda: parametrizations.spectral_norm(linear()),
    "old weight norm": lambda: nn.utils.weight_norm(linear()),
    "a forward of the instance": lambda: own_weight(linear()),
    "a method of its own": lambda: Noting(16, 16, bias=False),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", UNLIKE)
def test_layers_that_are_more_than_linear_stay_and_are_named(kind):
    walk = Walk(Blocks(Residual(a=UNLIKE[kind](), b=linear())), METHODS[0], TOKENS, in_blocks())
    assert [layer.name for layer, _, _ in walk] == ["layers.0.b"]
    assert any("layers.0.a" in sentence for sentence in walk.left_out)


class Asking(nn.Module):
    """A block that asks what its layer is."""

    def __init__(self):
        super().__init__()
        self.a, self.b = linear(), linear()

    def forward(self, hidden: Tensor) -> Tensor:
        out = self.a(hidden) if isinstance(self.a, nn.Linear) else hidden * 0
        return hidden + self.b(out)


def test_what_a_compressed_layer_cannot_be_is_found_before_the_work():
    with pytest.raises(NearplaneError, match=r"layers\.0\.a otherwise than .* --skip"):
        Walk(Blocks(Asking()), METHODS[0], TOKENS, in_blocks()).prepare()


class Mixture(nn.Module):
    """Experts in a list, and what chooses them, under a name."""

    def __init__(self, name: str):
        super().__init__()
        self.experts = nn.ModuleList(Residual(a=linear()) for _ in range(4))
        self.add_module(name, linear(16, 4))
        self.name = name

    def forward(self, hidden: Tensor) -> Tensor:
        shares = getattr(self, self.name)(hidden).softmax(-1)
        return sum(shares[..., i, None] * e(hidden) for i, e in enumerate(self.experts))


@pytest.mark.parametrize("name", ["gate", "router", "switch"])
def test_routers_beside_a_list_of_experts_stay(name):
    selection = select(Blocks(Mixture(name)))
    assert selection.routers == (f"layers.0.{name}",)
    assert [n.rsplit(".", 1)[1] for n in selection.in_blocks] == ["a"] * 4


def test_blocks_are_no_list_of_heads():
    model = Blocks(Residual(a=linear()))
    model.heads = nn.ModuleList(linear(16, 500) for _ in range(3))
    assert find_blocks(model)[0] == "layers"
    sequence = Blocks(Residual(a=linear()))
    sequence.layers = nn.Sequential(Residual(a=linear()), Residual(b=linear()))
    assert len(find_blocks(sequence)[1]) == 2
    assert [la.name for la, _, _ in Walk(sequence, METHODS[0], TOKENS, in_blocks())] == [
        *("layers.0.a", "layers.1.b")
    ]


class Under(Blocks):
    """A model that runs its blocks in a mode of torch."""

    def __init__(self, mode: Any):
        super().__init__(Residual(a=linear()))
        self.mode = mode

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Tensor:
        with self.mode():
            return super().forward(input_ids)


@pytest.mark.parametrize(
    "mode",
    [lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode],
    ids=["autocast", "inference mode"],
)
def test_modes_that_passes_would_leave_switched_on_are_refused(mode):
    with pytest.raises(NearplaneError, match="remove it from the model's code"):
        Walk(Under(mode), METHODS[0], TOKENS, in_blocks()).prepare()
    assert not torch.is_autocast_enabled("cpu") and not torch.is_inference_mode_enabled()


def test_any_error_of_a_run_without_numbers_is_taken(monkeypatch):
    model = Blocks(Residual(a=linear()))

    def forward(*_: Any, **__: Any) -> None:
        raise AssertionError

    layers = [*Walk(model, METHODS[0], TOKENS, in_blocks()).prepare().layers]
    monkeypatch.setattr(model, "forward", forward)
    assert meta_run(model, layers).stages == [layers]

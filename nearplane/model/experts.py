"""Experts as separate linear layers, in place of modules that keep them in 3-D tensors.

The layers are called EXPERTS.INDEX.down_proj and so on, and are loaded, run and rounded like any
others. This file imports no library but torch; attributes of the replaced module say how
transformers stores its matrices.

| theirs, of one expert | ours |
|---|---|
| `gate_up_proj`, one half or every other row of it | `gate_proj`, `up_proj` |
| `up_proj`, where there is no gate | `up_proj` |
| `down_proj` | `down_proj` |
| `gate_up_proj_bias`, `down_proj_bias` ... | the layers' biases |
"""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nearplane.types import NearplaneError

SAMPLED = 4  # tokens on which experts are compared

# attributes that transformers' decorator sets on modules with fused experts
TRAITS = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "has_post_expert_norm")


class Expert(nn.Module):
    """The linear layers of one expert; `gate_proj` is None in families without a gate."""

    def __init__(self, gate_proj: nn.Module | None, up_proj: nn.Module, down_proj: nn.Module):
        super().__init__()
        self.gate_proj = gate_proj
        self.up_proj = up_proj
        self.down_proj = down_proj

    @property
    def first(self) -> list[nn.Module]:
        """The layers that the expert's input enters, in the order they run."""
        return [self.up_proj] if self.gate_proj is None else [self.gate_proj, self.up_proj]


class Entry(nn.Module):
    """Returns the tokens that enter the experts; hooks on it see these and their experts."""

    def forward(self, tokens: Tensor, _index: Tensor) -> Tensor:
        return tokens


class Experts(nn.Module):
    """The experts of one layer, children called 0, 1 ...; computes the same as the fused module.

    - `entry`: returns its input; called with the tokens, and the experts that each is routed to.
    """

    def __init__(self, fused: nn.Module):
        super().__init__()
        # in a tuple, so that it is no child; without matrices, but with its activation function
        self.shell: tuple[Any] = (fused,)
        self.entry = Entry()
        self.training = fused.training
        self.numbers: dict[Any, int] = {}
        for index, expert in enumerate(taken_apart(fused)):
            self.add_module(str(index), expert)
            self.numbers[expert] = index
        for name in list(fused._parameters):
            fused.register_parameter(name, None)

    def __len__(self) -> int:
        return len(self._modules) - 1

    def number(self, expert: Expert) -> int:
        """Return the index of an expert."""
        return self.numbers[expert]

    def __getitem__(self, index: int) -> Any:
        return self._modules[str(index)]

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    # not annotated with shapes: jaxtyping's checks fail in runs that pause inside (walk/capture.py)
    def inner(self, expert: Expert, x: Tensor) -> Tensor:
        """Return the input of the expert's down projection for `x`: (tokens, columns)."""
        shell = self.shell[0]
        if expert.gate_proj is None:
            return shell.act_fn(expert.up_proj(x))
        # in the order of `first`: the walk stops in front of the first of them
        gate, up = expert.gate_proj(x), expert.up_proj(x)
        if shell.is_concatenated:
            return shell._apply_gate(torch.cat([gate, up], -1))
        return shell._apply_gate(torch.stack([gate, up], -1).flatten(-2))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return Σ over a token's experts of weight · expert(token), summed in at least float32.

        - `hidden_states`: (tokens, columns); the others (tokens, k).
        """
        x = self.entry(hidden_states, top_k_index)
        total = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        share = top_k_weights.flatten()
        token_of = torch.arange(len(x), device=x.device).repeat_interleave(top_k_index.shape[1])
        for expert, places in zip(self, routes(top_k_index, len(self)), strict=True):
            if len(places):
                tokens = token_of[places]
                output = expert.down_proj(self.inner(expert, x[tokens])) * share[places, None]
                total.index_add_(0, tokens, output.to(total.dtype))
        return total.to(x.dtype)

    def fused(self) -> nn.Module:
        """Return the module that this one replaced, with the matrices that its layers hold now."""
        shell = self.shell[0]
        for name, tensor in put_together(list(self), shell).items():
            shell.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        shell.training = self.training
        return shell


def routes(index: Int[Tensor, "tokens k"], experts: int) -> list[Int[Tensor, " places"]]:
    """Return for each expert the positions in flattened `index` that hold its number, ascending.

    - `index`: the experts of every token; numbers from `experts` up are ignored. On the meta
      device, where it has no values, every expert gets all positions.
    """
    flat = index.flatten()
    if flat.is_meta:
        return [torch.arange(len(flat), device=flat.device)] * experts
    counts = flat.bincount(minlength=experts)[:experts].tolist()
    return list(flat.argsort(stable=True)[: sum(counts)].split(counts))


def is_fused(module: Any) -> bool:
    """Whether `module` holds experts in 3-D tensors, in a layout that `Experts` can replace."""
    if not all(hasattr(module, trait) for trait in TRAITS) or module.has_post_expert_norm:
        return False
    matrices = {first_of(module), "down_proj"}
    biases = {f"{name}_bias" for name in matrices} if module.has_bias else set()
    held = dict(module.named_parameters(recurse=False))
    return held.keys() == matrices | biases and all(held[name].ndim == 3 for name in matrices)


def split_experts_(model: nn.Module, only: Collection[str] | None = None) -> None:
    """Replace the fused experts of `model` by `Experts`; only interleaved matrices are copied.

    - `only`: names of the modules to replace; all if None.

    Raises NearplaneError if experts that hold weights compute something else one by one.
    """
    for name, module in list(model.named_modules()):
        if is_fused(module) and (only is None or name in only):
            given = sample_of(module)
            together = None if given is None else ran(module, given)
            split = Experts(module)
            if given and together is not None and far(split(*given), together):
                raise NearplaneError(
                    f"the experts {name} ({type(module).__name__}) compute something else one by "
                    "one than together: this model cannot be quantized"
                )
            model.set_submodule(name, split)


def sample_of(fused: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return a few tokens, their experts and their weights; None on the meta device."""
    weight = next(layers_in(fused, first_of(fused)))[0]
    if weight.is_meta:
        return None
    experts, columns = len(fused.down_proj), weight.shape[1]
    numbers = torch.arange(SAMPLED * columns, device=weight.device)
    tokens = torch.sin(numbers.double() * 0.7 + 1).view(SAMPLED, columns).to(weight.dtype)
    index = torch.arange(SAMPLED * 2, device=weight.device).view(SAMPLED, 2) % experts
    shares = torch.tensor([0.7, 0.3], device=weight.device, dtype=weight.dtype)
    return tokens, index, shares.expand(SAMPLED, 2)


@torch.no_grad()
def ran(fused: Any, given: tuple[Tensor, Tensor, Tensor]) -> Tensor | None:
    """Return what fused experts compute; None where they need more than tokens and experts."""
    try:
        return fused(*given)
    # the implementation may be any function that a model brings
    except Exception:
        return None


def far(found: Tensor, expected: Tensor) -> bool:
    """Whether two results differ by more than their type's rounding, if they are finite."""
    apart = (found.double() - expected.double()).norm()
    limit = max(16 * torch.finfo(expected.dtype).eps, 1e-4) * expected.double().norm()
    return bool(apart > limit)


def join_experts_(model: nn.Module, kept: Collection[str] = ()) -> None:
    """Undo `split_experts_`, except for the modules whose names are in `kept`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Experts) and name not in kept:
            model.set_submodule(name, module.fused())


def first_of(fused: Any) -> str:
    """Return the name of the matrices that multiply the experts' inputs."""
    return "gate_up_proj" if fused.has_gate else "up_proj"


def taken_apart(fused: Any) -> Iterator[Expert]:
    """Yield every expert of a fused module; its weights are views of the tensors if possible."""
    firsts, downs = layers_in(fused, first_of(fused)), layers_in(fused, "down_proj")
    for (weight, bias), down in zip(firsts, downs, strict=True):
        if not fused.has_gate:
            yield Expert(None, linear(weight, bias), linear(*down))
            continue
        weights = halves(weight, fused)
        biases = (None, None) if bias is None else halves(bias, fused)
        gate, up = map(linear, weights, biases)
        yield Expert(gate, up, linear(*down))


def layers_in(fused: Any, name: str) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield weight, as (out, in), and bias of every expert."""
    matrices = fused.get_parameter(name)
    biases = fused.get_parameter(f"{name}_bias") if fused.has_bias else [None] * len(matrices)
    for weight, bias in zip(matrices.detach(), biases, strict=True):
        yield weight.T if fused.is_transposed else weight, bias


def halves(both: Tensor, fused: Any) -> tuple[Tensor, Tensor]:
    """Return the gate's and the up projection's part of a tensor whose first axis is outputs."""
    if fused.is_concatenated:
        gate, up = both.chunk(2)
        return gate, up
    # interleaved views would overlap in memory, which safetensors refuses to write
    return both[::2].clone(), both[1::2].clone()


def joined(gate: Tensor, up: Tensor, fused: Any) -> Tensor:
    """Undo `halves`."""
    return (
        torch.cat([gate, up]) if fused.is_concatenated else torch.stack([gate, up], 1).flatten(0, 1)
    )


def put_together(experts: list[Expert], fused: Any) -> dict[str, Tensor]:
    """Undo `taken_apart`: return the 3-D tensors of a fused module, and its biases, by name."""
    fused_tensors: dict[str, Tensor] = {}
    for part in ["weight", "bias"] if fused.has_bias else ["weight"]:
        ups = [getattr(expert.up_proj, part) for expert in experts]
        if fused.has_gate:
            gates = [getattr(expert.gate_proj, part) for expert in experts]
            ups = [joined(gate, up, fused) for gate, up in zip(gates, ups, strict=True)]
        downs = [getattr(expert.down_proj, part) for expert in experts]
        for name, tensors in ((first_of(fused), ups), ("down_proj", downs)):
            if part == "weight" and fused.is_transposed:
                tensors = [tensor.T for tensor in tensors]
            suffix = "_bias" if part == "bias" else ""
            fused_tensors[name + suffix] = torch.stack(tensors).detach()
    return fused_tensors


def linear(weight: Float[Tensor, "rows columns"], bias: Float[Tensor, " rows"] | None) -> nn.Linear:
    """Return a linear layer that holds these tensors without a copy."""
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer

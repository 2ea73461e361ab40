"""Decoder layers of the Llama kind run a single token in two calls of the kernels.

While text is generated, Python and torch's small operators take longer than the products of a small
model. A layer whose weights are compressed gets a `forward` that serves a single token by
`codes.fused` and every other call by the layer's own; the first such call goes through both, and
they must agree.
"""

import weakref
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as every

from nearplane.codes import fused, resident
from nearplane.codes.fused import GELU_TANH, SILU, Block, Linear, Norm
from nearplane.export.linear import CompressedLinear

# of `config.model_type`: their layers are what `codes.fused` computes, by their source code
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
NEEDED = ("attention_mask", "past_key_values", "position_embeddings")
WITHOUT_EFFECT = {"position_ids", "use_cache", "cache_position"}
ACTIVATIONS = {"silu": SILU, "swish": SILU, "gelu_pytorch_tanh": GELU_TANH}
# most relative difference of the two ways, where only the order of sums and roundings differ
TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def attach(model: nn.Module) -> None:
    """Let every layer that can run a single token this way do so."""
    for module in model.modules():
        if parts_of(module) is not None:
            module.forward = OneToken(module)


def detach(model: nn.Module) -> None:
    """Undo `attach`."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), OneToken):
            del module.forward


class OneToken:
    """A decoder layer's `forward`.

    - `block`: the layer's parts as the kernels take them; None until it is needed.
    - `agrees`: whether both ways gave the same for a token; None before that was tried.
    """

    def __init__(self, layer: nn.Module):
        # a layer that its own forward kept alive would only be freed by the garbage collector
        self.reference = weakref.ref(layer)
        self.block: Block | None = None
        self.watched: list[tuple[dict, str, Any]] = []
        self.addresses: list[tuple[nn.Parameter, int]] = []
        self.inner: list[nn.Module] = []
        self.agrees: bool | None = None

    @property
    def layer(self) -> nn.Module:
        """The layer whose forward this is."""
        layer = self.reference()
        assert layer is not None
        return layer

    def __getstate__(self) -> dict[str, Any]:
        return {"layer": self.layer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["layer"])

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not self.serves(hidden_states, args, kwargs):
            return self.own(hidden_states, *args, **kwargs)
        if self.agrees is None:
            return self.compared(hidden_states, kwargs)
        return self.run(hidden_states, *(kwargs[name] for name in NEEDED))

    def own(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer's class computes."""
        return type(self.layer).forward(self.layer, hidden_states, *args, **kwargs)

    def serves(self, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether this call is one token's, of a layer that nothing else looks into."""
        layer = self.layer
        if self.agrees is False or args or x.shape[:2] != (1, 1) or torch.is_grad_enabled():
            return False
        if layer.training or kwargs.get("past_key_values") is None:
            return False
        given = {name for name, value in kwargs.items() if value is not None}
        if not given <= {*NEEDED, *WITHOUT_EFFECT} or "position_embeddings" not in given:
            return False
        return self.current()

    def current(self) -> bool:
        """Whether `block` has the layer's parts as they are now; makes it anew if they changed."""
        if self.block is not None and self.unchanged():
            return not self.looked_into()
        parts = parts_of(self.layer)
        self.agrees = None if parts is not None else False
        if parts is None:
            return False
        self.block = block_of(parts)
        self.inner = [module for module in self.layer.modules() if module is not self.layer]
        self.watched = list(watched(self.layer))
        # a cast keeps the parameter and moves what it holds
        self.addresses = [(p, p.data_ptr()) for p in self.layer.parameters()]
        return self.current()

    def unchanged(self) -> bool:
        """Whether the layer has the same modules and tensors as when `block` was made."""
        # loops: this is asked for every layer of every token
        for kept, name, value in self.watched:
            if kept.get(name) is not value:
                return False
        for parameter, address in self.addresses:
            if parameter.data_ptr() != address:
                return False
        return True

    def looked_into(self) -> bool:
        """Whether somebody watches or replaces what the modules inside do."""
        for module in self.inner:
            if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
                return True
        return bool(every._global_forward_hooks or every._global_forward_pre_hooks)

    def run(
        self, x: Tensor, mask: Tensor | None, cache: Any, rotation: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Return the block's output for one token."""
        attention: Any = self.layer.self_attn
        block: Any = self.block
        queries, keys, values = fused.attention_inputs(block, x, *rotation)
        keys, values = cache.update(keys, values, attention.layer_idx)
        if mask is not None:
            mask = mask[..., : keys.shape[-2]]
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            scale=attention.scaling,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )
        return fused.after_attention(block, x, attended)

    def compared(self, x: Tensor, kwargs: dict[str, Any]) -> Any:
        """Return what the layer's own code computes, and note whether `run` gives the same."""
        recorder = Recorder(kwargs["past_key_values"])
        expected = self.own(x, **kwargs | {"past_key_values": recorder})
        mask, _, rotation = (kwargs[name] for name in NEEDED)
        try:
            found = self.run(x, mask, recorder.again(), rotation)
        except (ValueError, TypeError, RuntimeError, AttributeError):
            # the layer has something that this way does not know of
            self.agrees = False
            return expected
        pairs = [(found, expected), *recorder.pairs]
        self.agrees = all(agree(*pair) for pair in pairs) and len(pairs) == 3
        return expected


class Recorder:
    """A cache that remembers a layer's update, and gives it again to another way to compute it."""

    def __init__(self, cache: Any):
        self.cache, self.replays = cache, False
        self.given: tuple[Tensor, Tensor] | None = None
        self.result: Any = None
        self.pairs: list[tuple[Any, Any]] = []

    def update(self, keys: Tensor, values: Tensor, *rest: Any, **more: Any) -> Any:
        if self.replays and self.given is not None:
            self.pairs = list(zip((keys, values), self.given, strict=True))
            return self.result
        self.given = keys, values
        self.result = self.cache.update(keys, values, *rest, **more)
        return self.result

    def again(self) -> "Recorder":
        self.replays = True
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)


def agree(found: Any, expected: Any) -> bool:
    """Whether two results are the same but for roundings."""
    if not isinstance(expected, Tensor) or found.shape != expected.shape:
        return False
    apart = float((found.float() - expected.float()).norm())
    return apart <= TOLERANCES.get(expected.dtype, 0.0) * float(expected.float().norm())


def parts_of(layer: nn.Module) -> dict[str, Any] | None:
    """Return the modules of a decoder layer by their names in `Block`; None for another layer."""
    attention: Any = getattr(layer, "self_attn", None)
    mlp: Any = getattr(layer, "mlp", None)
    config = getattr(attention, "config", None)
    if getattr(config, "model_type", None) not in FAMILIES:
        return None
    # other implementations of attention have caches and arguments of their own
    if getattr(config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return None
    names = {"queries": "q", "keys": "k", "values": "v", "output": "o"}
    parts = {name: getattr(attention, f"{letter}_proj", None) for name, letter in names.items()}
    parts |= {name: getattr(mlp, f"{name}_proj", None) for name in ("gate", "up", "down")}
    if not all(
        isinstance(m, CompressedLinear) and m.form != resident.RECORD for m in parts.values()
    ):
        return None
    sandwiched = hasattr(layer, "pre_feedforward_layernorm")
    norms = ["input_layernorm", "post_attention_layernorm"] + [
        "pre_feedforward_layernorm"
    ] * sandwiched
    found = [getattr(layer, name, None) for name in norms]
    before, between, feeding = (*found, None)[:3]
    parts |= {"before_attention": before, "after_attention": between if sandwiched else None}
    parts |= {"before_mlp": feeding if sandwiched else between}
    parts |= {"after_mlp": getattr(layer, "post_feedforward_layernorm", None)}
    parts |= {"of_queries": getattr(attention, "q_norm", None)}
    parts |= {"of_keys": getattr(attention, "k_norm", None), "head_size": attention.head_dim}
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    parts["gate_kind"] = ACTIVATIONS.get(activation or "")
    return None if parts["gate_kind"] is None else parts


def block_of(parts: dict[str, Any]) -> Block:
    """Return the parts of a layer as the kernels take them."""
    made: dict[str, Any] = {}
    for name, part in parts.items():
        if name in ("head_size", "gate_kind"):
            made[name] = part
        else:
            made[name] = linear_of(part) if isinstance(part, CompressedLinear) else norm_of(part)
    return Block(**made)


def linear_of(layer: CompressedLinear) -> Linear:
    """Return a compressed layer as the kernels take it."""
    bias = None if layer.bias is None else layer.bias.data
    return Linear(layer._bytes, layer.form, layer.out_features, layer.in_features, bias)


def norm_of(norm: Any) -> Norm:
    """Return a norm of transformers as the kernels take it; one that does nothing for None."""
    if norm is None:
        return Norm()
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0))
    # Gemma's norms store what is added to 1
    offset = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0
    return Norm(norm.weight.data, float(eps), offset)


def watched(layer: nn.Module) -> Iterator[tuple[dict, str, Any]]:
    """Yield where the modules and weights of a layer are kept, by name, and what is there."""
    for module in layer.modules():
        for name, child in module._modules.items():
            yield module._modules, name, child
        if isinstance(module, CompressedLinear):
            yield module._buffers, "laid", module.laid
            yield module._parameters, "bias", module.bias

"""A single token through the kernels gives what layers compute themselves, or goes through them."""

import copy
import dataclasses
import gc
import weakref
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import (
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
)

import nearplane as npl
from nearplane.export import one_token
from nearplane.export.one_token import FAMILIES, OneToken, detach
from nearplane.kernels import cpu
from tests.export import tiny

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the kernels were not built")

SIZES = tiny.SIZES | tiny.GATED
KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, attention_bias=True)),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, head_dim=16, sliding_window=4)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=16)),
    "gemma3_text": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=4, query_pre_attn_scalar=16),
    ),
}
PROMPT = torch.arange(1, 8)[None]
# of the logits, at random weights: sums in another order, and activations that fall on the other
# side of a half when they become integers of 15 bits
APART = {"compact": 1e-5, "fast": 1e-3}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Return (family, resident form) -> a model of random weights, also of norms and biases."""
    folders = {}

    def load(family: str, form: str = "compact") -> nn.Module:
        if family not in folders:
            kind, config = KINDS[family]
            torch.manual_seed(0)
            model = kind(config).eval()
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    parameter.data.normal_(0 if "bias" in name else 1, 0.3)
            folders[family] = tmp_path_factory.mktemp(family) / "out"
            tiny.write(model, folders[family])
        model = npl.load(folders[family], resident=form, arithmetic="float32")
        # the last digits of torch's products depend on where in memory a weight begins: in a file
        # anywhere, in a copy at a multiple of 64
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        return model

    return load


def ways(model: nn.Module) -> list[OneToken]:
    found = [module.__dict__.get("forward") for module in model.modules()]
    return [way for way in found if isinstance(way, OneToken)]


@torch.inference_mode()
def decoded(model: nn.Module, cache=None, tokens: int = 6) -> torch.Tensor:
    """Return the logits of a prompt's last token, and of tokens fed one by one."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    steps = [model(input_ids=PROMPT, past_key_values=cache).logits[:, -1:]]
    for token in range(10, 10 + tokens):
        given = torch.tensor([[token]])
        steps.append(model(input_ids=given, past_key_values=cache).logits)
    return torch.cat(steps, 1)


def own(model: nn.Module, **options) -> torch.Tensor:
    alone = copy.deepcopy(model)
    detach(alone)
    assert not ways(alone)
    return decoded(alone, **options)


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("form", APART)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_layers_own_code(loaded, family, form):
    model = loaded(family, form)
    expected, found = own(model), decoded(model)
    assert [way.agrees for way in ways(model)] == [True, True]
    assert apart(found, expected) <= APART[form]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_library_is_called_for_every_token_but_the_first(loaded, threads):
    model, before = loaded("llama"), torch.get_num_threads()
    torch.set_num_threads(threads)
    served = one_token.fused.after_attention
    with patch.object(one_token.fused, "after_attention", wraps=served) as called:
        found = decoded(model)
    torch.set_num_threads(before)
    # the first token goes both ways
    assert called.call_count == 2 * 6 and apart(found, own(model)) <= APART["compact"]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_static_cache_brings_a_mask(loaded, family):
    model = loaded(family)

    def cache():
        return StaticCache(config=model.config, max_cache_len=32)

    expected, found = own(model, cache=cache()), decoded(model, cache())
    assert apart(found, expected) <= APART["compact"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_types_differ_by_their_roundings(loaded, dtype):
    """Two layers of some ten roundings of 2^-9 or 2^-12 each, which random weights carry on."""
    model = loaded("llama").to(dtype)
    found, expected = decoded(model).float(), own(model).float()
    assert [way.agrees for way in ways(model)] == [True, True]
    assert apart(found, expected) <= 20 * 2.0 ** (-9 if dtype == torch.bfloat16 else -12)


def test_a_cast_and_a_replaced_module_are_noticed(loaded):
    model = loaded("llama")
    decoded(model)
    model.to(torch.bfloat16).to(torch.float32)
    assert apart(decoded(model), own(model)) <= APART["compact"]
    layer = model.model.layers[0]
    layer.mlp.up_proj = nn.Sequential(layer.mlp.up_proj, nn.Tanh())
    assert apart(decoded(model), own(model)) <= APART["compact"]
    assert ways(model)[0].agrees is False and ways(model)[1].agrees is True


def test_hooks_inside_see_every_token(loaded):
    model, seen = loaded("llama"), []
    decoded(model)
    inner = model.model.layers[1].mlp.gate_proj
    handle = inner.register_forward_hook(lambda *_: seen.append(1))
    expected = own(model)
    seen.clear()
    assert apart(decoded(model), expected) <= APART["compact"] and len(seen) == 7
    handle.remove()


def test_a_forward_that_was_replaced_inside_is_called(loaded):
    model = loaded("llama")
    decoded(model)
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: 2 * type(mlp).forward(mlp, x)
    assert apart(decoded(model), own(model)) <= APART["compact"]


def test_hooks_of_all_modules_see_the_layers_inside(loaded):
    model, seen = loaded("llama"), set()
    decoded(model)
    handle = register_module_forward_hook(lambda module, *_: seen.add(module))
    decoded(model)
    handle.remove()
    assert model.model.layers[1].mlp.gate_proj in seen


def test_gradients_batches_and_training_go_the_layers_own_way(loaded):
    model = loaded("llama")
    decoded(model)
    with patch.object(OneToken, "run", side_effect=AssertionError("must not be called")):
        model(input_ids=torch.tensor([[3]])).logits.sum().backward()
        with torch.no_grad():
            model(input_ids=torch.tensor([[3], [4]]), past_key_values=DynamicCache())
            model(input_ids=torch.tensor([[3]]), use_cache=False)
            model.train()(input_ids=torch.tensor([[3]]), past_key_values=DynamicCache())
    assert model.eval().model.layers[0].input_layernorm.weight.grad is not None


def test_hidden_states_and_attentions_are_given_when_asked_for(loaded):
    model = loaded("llama")
    model.set_attn_implementation("eager")
    expected = own(model)
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        model(input_ids=PROMPT, past_key_values=cache)
        said = model(
            input_ids=torch.tensor([[10]]),
            past_key_values=cache,
            output_attentions=True,
            output_hidden_states=True,
        )
    assert len(said.hidden_states) == 3 and len(said.attentions) == 2
    assert said.attentions[0] is not None
    assert apart(said.logits[:, 0], expected[:, 1]) <= APART["compact"]


def test_copies_and_pickles_run(loaded):
    model = loaded("llama")
    expected = decoded(model)
    layer = model.model.layers[0]
    for made in tiny.copies(model):
        other = made.model.layers[0]
        assert other is not layer and other.forward.layer is other
        assert apart(decoded(made), expected) <= APART["compact"]


def test_a_model_is_freed_at_once(loaded):
    """Its files stay open as long as it is there: without the garbage collector's help."""
    model = loaded("llama")
    decoded(model)
    kept = [weakref.ref(module) for module in model.modules()]
    gc.collect()
    gc.disable()
    try:
        del model
        assert not [reference() for reference in kept if reference() is not None]
    finally:
        gc.enable()


def test_what_computes_something_else_is_found_at_its_first_token(loaded):
    """As a norm of another kind would."""
    model = loaded("qwen3")
    expected, made = own(model), one_token.norm_of

    def wrong(norm):
        return dataclasses.replace(made(norm), offset=0.1)

    with patch.object(one_token, "norm_of", wrong):
        found = decoded(model)
    assert [way.agrees for way in ways(model)] == [False, False]
    assert torch.equal(found, expected)


def test_other_families_and_dequantized_models_are_left_alone(loaded, tmp_path):
    torch.manual_seed(0)
    granite = GraniteForCausalLM(GraniteConfig(**SIZES)).eval()
    tiny.write(granite, tmp_path / "out")
    assert not ways(npl.load(tmp_path / "out"))
    assert len(ways(loaded("llama"))) == 2
    assert not ways(loaded("llama").dequantize())


def test_text_is_the_same(loaded):
    model = loaded("qwen3")
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    found = model.generate(PROMPT, **options)
    detach(model)
    assert torch.equal(found, model.generate(PROMPT, **options))

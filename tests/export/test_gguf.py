"""GGUF files: what llama.cpp's own decoder and transformers read is what nearplane computes."""

import json

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import nearplane as npl
from nearplane import codes
from nearplane.export.checkpoint_reader import open_checkpoint
from nearplane.export.formats import export
from nearplane.export.formats.linear_layers import group_size_of
from nearplane.export.gguf import byte_level, sentencepiece
from nearplane.export.gguf.architecture import ARCHITECTURES, architecture_of, rotation_factors
from nearplane.export.gguf.blocks import BLOCK_TYPES
from nearplane.export.gguf.byte_level import SPLITS, split_of
from nearplane.export.gguf.sentencepiece import BYTES, ESCAPED
from nearplane.export.gguf.vocabulary import (
    backend_of,
    general_name,
    put_around,
    strip_differences,
)
from nearplane.methods import ECLQ, GGUF, HPTQ, RTN, SSQR
from nearplane.pipeline import quantize
from nearplane.types import NearplaneError
from tests.cli.tiny import tokenizer

TOKENS = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(0))
ROUNDED = RTN(bits=4, group_size=32)


@pytest.mark.parametrize("block", BLOCK_TYPES, ids=lambda block: block.grid.name)
@given(data=st.data())
def test_blocks_hold_what_the_package_gguf_decodes(block, data):
    rows, blocks = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    draws = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    grid, columns = block.grid, blocks * block.columns
    minima = grid.minima and data.draw(st.booleans())
    low, high = (0, grid.highest) if minima else (grid.low, grid.high)
    code = draws.choice(grid.levels or range(low, high + 1), (rows, columns)).astype(np.int32)

    def products(fewest):
        shape = rows, columns // grid.group
        factor = 2.0 ** draws.uniform(-20, 11, (rows, blocks)) * draws.choice([-1, 1])
        multiple = draws.integers(fewest, max(grid.multiples, 1) + 1, shape)
        if grid.signed and grid.multiples:
            multiple = multiple * draws.choice([-1, 1], multiple.shape)
        wide = factor.astype("f2").repeat(block.columns // grid.group, 1)
        return wide.astype("f4") * multiple.astype("f4")

    parts = [products(1), *([products(0)] if minima else [])]
    assert block.holds(code, minima)
    decoded = gguf.dequantize(block.packed(code, *parts), block.ggml)
    # integers of 8 bits times 11 bits times 7 bits: steps and minima are exact in float32, and
    # products of the types that have multiples
    step, *minimum = (part.repeat(grid.group, 1) for part in parts)
    assert np.array_equal(decoded, code.astype("f4") * step - (minimum[0] if minima else 0))


@pytest.mark.parametrize("block", BLOCK_TYPES, ids=lambda block: block.grid.name)
def test_steps_that_a_type_does_not_hold(block):
    """Of no common factor; of both signs where there is one; of too many bits."""
    each = block.columns // block.grid.group
    odd = np.full((1, each), 1.0, np.float32)
    odd[0, 0] = 1 + 2.0**-12
    assert block.factors(odd) is None
    halves = np.full((2, each), -0.5, np.float32)
    assert block.factors(halves) is not None
    assert block.holds(np.ones((1, 1), np.int32), True) == block.grid.minima
    if block.grid.minima:
        assert block.factors(halves, 0 * halves) is not None
        assert block.factors(halves[:1], odd) is None
    else:
        assert block.factors(halves, halves) is None
    if each > 1 and not block.grid.signed:
        odd[0, 0] = -1
        assert block.factors(odd) is None and block.factors(halves[:1], odd) is None


def model_of(family, directory, vocabulary=320, intermediate=96, **changes):
    """Write the tiny model of a family with a tokenizer; return the model."""
    torch.manual_seed(0)
    own = {"intermediate_size": intermediate, "head_dim": 16} if family != "gpt2" else {}
    if "moe" in family or family == "mixtral":
        own |= {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        own |= {"norm_topk_prob": True}
    config = AutoConfig.for_model(
        family,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=vocabulary,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        initializer_range=0.1,
        **own,
        **({} if family == "gpt2" else {"num_key_value_heads": 2}),
        **({"query_pre_attn_scalar": 16} if family.startswith("gemma") else {}),
        **changes,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
            if "embed" in name:
                parameter.mul_(5)
    model.save_pretrained(directory)
    tokenizer(True).save_pretrained(directory)
    return model


# of Mixtral, transformers reads no GGUF files; llama.cpp's are compared in tests/llamacpp
@pytest.mark.parametrize("family", sorted(set(ARCHITECTURES) - {"mixtral"}))
def test_transformers_reads_the_same_model(family, tmp_path):
    """Integers, steps, permutations, offsets of norms, tied heads and the configuration."""
    model_of(family, tmp_path / "model")
    quantize(tmp_path / "model", tmp_path / "out", ROUNDED, TOKENS)
    said = []
    out = export(tmp_path / "out", tmp_path / "gguf", "gguf", says=said.append)
    assert "in Q4_0" in said[0]
    expected = npl.load(tmp_path / "out", dequantize=True, dtype=torch.float32)
    # its reader leaves out the sizes of heads and other keys, which llama.cpp's does not
    own = AutoConfig.from_pretrained(tmp_path / "model")
    config = None if family == "mistral" else own  # a Llama to llama.cpp
    found = AutoModelForCausalLM.from_pretrained(
        out, gguf_file="model.gguf", config=config, dtype=torch.float32
    )
    with torch.no_grad():
        pair = [model(TOKENS).logits for model in (found, expected)]
    # norms are stored plus 1 in float32 for Gemma, which moves their last digit
    exact = architecture_of(expected.config).norm_offset == 0
    assert pair[0].equal(pair[1]) if exact else torch.allclose(*pair, rtol=1e-4, atol=1e-5)


def checkpoint_of(directory, method, **changes):
    """Return the checkpoint of a tiny Llama, with other words in its configuration."""
    model_of("llama", directory / "model")
    quantize(directory / "model", directory / "out", method, TOKENS)
    path = directory / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory / "out"


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (ECLQ(bpw=5.0), "a step of every column has no place there; quantize with --method hptq"),
        (
            SSQR(bits=4, group_size=32, outliers=0.1),
            "outliers have no place there; quantize with --method hptq",
        ),
        (RTN(bits=4, group_size=24), "groups of 24 columns .* with --group-size 32 or a multiple"),
        (HPTQ(bpw=11.0), "reach from -.* and the widest type holds -128 to 127; .* fewer bits"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_no_type_holds_is_refused(method, reason, tmp_path):
    out = checkpoint_of(tmp_path, method)
    with pytest.raises(NearplaneError, match=reason):
        export(out, tmp_path / "gguf", "gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_act": "gelu"}, "llama.cpp runs llama with silu only, not gelu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "scaled as 'dynamic' cannot be written",
        ),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(changes, reason, tmp_path):
    out = checkpoint_of(tmp_path, ROUNDED, **changes)
    with pytest.raises(NearplaneError, match=reason):
        export(out, tmp_path / "gguf", "gguf")


def test_families_and_scales_that_are_not_known_are_refused():
    with pytest.raises(NearplaneError, match="a GGUF file of bloom models cannot be written, only"):
        architecture_of(AutoConfig.for_model("bloom"))
    config = AutoConfig.for_model("gemma3_text", query_pre_attn_scalar=100)
    with pytest.raises(NearplaneError, match="divides scores of gemma3_text by √256, the model by"):
        architecture_of(config).add(gguf.GGUFWriter(None, "gemma3"), config)


def test_one_step_of_a_matrix_takes_the_type_of_its_largest_integer(tmp_path):
    """HPTQ's integers as they are: 256 columns in the types of 256, others in those of 32."""
    out = checkpoint_of(tmp_path, HPTQ(bpw=3.0))
    said = []
    exported = export(out, tmp_path / "gguf", "gguf", says=said.append)
    values = npl.load(out, dequantize=True, dtype=torch.float32).state_dict()
    for tensor in gguf.GGUFReader(exported / "model.gguf").tensors:
        if tensor.name.endswith("ffn_down.weight"):
            name = f"model.layers.{tensor.name.split('.')[1]}.mlp.down_proj.weight"
            decoded = gguf.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(decoded, values[name].numpy())
    assert "Q" in said[0]


def test_minima_are_written_as_they_are(tmp_path):
    """Of Q5_K and, where 256 does not divide rows, Q5_1; other formats have no place for them."""
    model_of("llama", tmp_path / "model", intermediate=256)
    quantize(tmp_path / "model", tmp_path / "out", GGUF(type="Q5_K"), TOKENS)
    exported = export(tmp_path / "out", tmp_path / "gguf", "gguf")
    values = npl.load(tmp_path / "out", dequantize=True, dtype=torch.float32).state_dict()
    names = {"ffn_down": "mlp.down_proj", "ffn_up": "mlp.up_proj", "attn_v": "self_attn.v_proj"}
    for tensor in gguf.GGUFReader(exported / "model.gguf").tensors:
        _, block, kind, *_ = [*tensor.name.split("."), "", "", ""]
        if kind in names:
            assert tensor.tensor_type.name == ("Q5_K" if kind == "ffn_down" else "Q5_1")
            decoded = gguf.dequantize(tensor.data, tensor.tensor_type)
            own = values[f"model.layers.{block}.{names.pop(kind)}.weight"]
            assert np.array_equal(decoded, own.numpy())
    assert not names
    held = codes.unpack(open_checkpoint(tmp_path / "out").record("model.layers.0.mlp.up_proj"))
    with pytest.raises(NearplaneError, match="written as gptq: minima of groups have no place"):
        group_size_of(held, "up_proj", "gptq")


def split_with(*steps, ignore_merges=False):
    made = Tokenizer(models.BPE(vocab={"a": 0}, merges=[], ignore_merges=ignore_merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    return json.loads(made.to_str())


PATTERNS = [key for key in SPLITS if "words" not in key[0] and "digits" not in key[0]]


@pytest.mark.parametrize(("pattern", "merged"), PATTERNS)
def test_ways_to_split_have_llama_cpps_names(pattern, merged):
    splits = [
        pre_tokenizers.Split(Regex(part), behavior="isolated") for part in pattern.split(", ")
    ]
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend = split_with(*splits, bytewise, ignore_merges=merged)
    assert split_of(backend) == SPLITS[pattern, merged]


def test_the_reader_of_transformers_splits_by_the_same_expressions():
    from transformers.integrations.gguf import gguf_tokenizer_mapping as theirs

    known = theirs.GGUF_PRE_TOKENIZER_SPLITS
    same = {SPLITS[key]: key[0] for key in PATTERNS if SPLITS[key] in known}
    assert len(same) >= 6 and {name: known[name] for name in same} == same


def test_other_tokenizers_are_refused():
    with pytest.raises(NearplaneError, match="splits text in a way that llama.cpp is not known"):
        split_of(split_with(pre_tokenizers.Whitespace()))
    unigram = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("a", 0.0)])))
    with pytest.raises(NearplaneError, match="of the kind Unigram cannot be written to GGUF"):
        backend_of(unigram)


def sentencepiece_with(merges, normalizer="Replace", cut=None, added=(), without=()):
    """Return the JSON of a SentencePiece tokenizer whose letters are a, b and c."""
    pieces = [*BYTES, "▁", "a", "b", "c", *(left + right for left, right in merges)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces)) if piece not in without}
    model = {"vocab": vocabulary, "merges": merges, "byte_fallback": True}
    changes = {"Replace": ESCAPED}.get(normalizer, {"type": normalizer})
    added = [{"content": each, "normalized": False, "special": False} for each in added]
    return {"model": model, "normalizer": changes, "pre_tokenizer": cut, "added_tokens": added}


def test_merges_that_scores_do_not_give_are_refused():
    sentencepiece.check(sentencepiece_with([["a", "b"], ["ab", "c"], ["a", "a"]]))
    # "abc" is made of "a" and "bc", too, and "ab" a second time after another token
    for merges in ([["a", "b"], ["b", "c"], ["ab", "c"]],):
        with pytest.raises(NearplaneError, match="'a' and 'bc' in another order than the token"):
            sentencepiece.check(sentencepiece_with(merges))
    odd = [["a", "a"], ["aa", "a"], ["b", "b"], ["a", "aa"]]
    with pytest.raises(NearplaneError, match="'a' and 'aa' in another order than the tokenizer"):
        sentencepiece.check(sentencepiece_with(odd))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"without": ["<0x41>"]}, "has no token <0x41>, which llama.cpp needs"),
        ({"normalizer": "NFKC"}, "changes text by NFKC, and llama.cpp by putting ▁ for spaces"),
        ({"cut": {"type": "Whitespace"}}, "cuts text by Whitespace, which llama.cpp does not"),
        (
            {"cut": {"type": "Metaspace", "split": True, "prepend_scheme": "first"}},
            "cuts text by Metaspace",
        ),
    ],
)
def test_sentencepiece_that_llama_cpp_does_not_have_is_refused(changes, reason):
    with pytest.raises(NearplaneError, match=reason):
        sentencepiece.check(sentencepiece_with([["a", "b"]], **changes))


def test_changes_of_text_are_said_or_refused():
    backend = split_with(pre_tokenizers.ByteLevel(add_prefix_space=False))
    said = byte_level.check(backend | {"normalizer": {"type": "NFC"}})
    assert said == ["llama.cpp takes text as it is, where the tokenizer brings it to Unicode's NFC"]
    with pytest.raises(NearplaneError, match="changes text by Lowercase, which llama.cpp does not"):
        byte_level.check(backend | {"normalizer": {"type": "Lowercase"}})


def test_names_by_which_llama_cpp_reads_tokens_otherwise_are_changed():
    plain, strips = tokenizer(True), tokenizer(True)
    names = ["<unk>", "<s>", "<|endoftext|>", "</s>", "<|user|>"]
    strips.add_tokens(
        [AddedToken(name, rstrip=i > 2, special=True) for i, name in enumerate(names)]
    )
    found = [general_name(name, plain) for name in ("my-Phi-3", "a-phi3-b", "Llama-3")]
    assert found == ["my-Phi 3", "a-phi 3-b", "Llama-3"]
    assert [general_name(name, strips) for name in ("x", "Phi-3-mini")] == [
        "x (phi-3)",
        "Phi-3-mini",
    ]
    strips.add_tokens([AddedToken("<odd>", lstrip=True, special=True)])
    assert general_name("x", strips) == "x"
    assert (
        "llama.cpp keeps white space beside </s>, <|user|>, <odd>" in strip_differences(strips)[0]
    )


def test_other_tokens_around_a_text_are_refused():
    made = tokenizer(True)
    assert put_around(made) == (True, False)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", 1)]
    )
    with pytest.raises(NearplaneError, match="makes '</s> a' of 'a', and llama.cpp puts only BOS"):
        put_around(made)


def test_scaled_rotations_of_llama_3_are_factors():
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    config = AutoConfig.for_model("llama", rope_parameters=rope, max_position_embeddings=512)
    factors = rotation_factors(config)
    # high frequencies stay, low ones are divided by the factor
    assert factors[0] == 1 and factors[-1] == pytest.approx(8.0) and len(factors) == 64
    assert rotation_factors(AutoConfig.for_model("llama")) is None

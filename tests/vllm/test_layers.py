"""vLLM's own layers, told to be one of several tensor-parallel ranks, against the matrix."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("vllm", reason="vLLM is not installed: `make test-vllm` makes an environment")

from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers import linear, vocab_parallel_embedding
from vllm.model_executor.layers.fused_moe import RoutedExperts
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.llama import LlamaForCausalLM

from nearplane import codes
from nearplane.codes import resident
from nearplane.export.vllm.config import NearplaneVllmConfig
from nearplane.export.vllm.linear_method import NearplaneHeadMethod, NearplaneLinearMethod
from nearplane.export.vllm.shards import LayerEntry
from nearplane.types import NearplaneError
from tests.export.tiny import Packed, pack_layer

HEADS, KV_HEADS, HEAD_SIZE, HIDDEN, INNER, VOCABULARY = 4, 2, 8, 30, 24, 141
LAYER = "model.layers.0."
SHAPES = {
    "self_attn.q_proj": (HEADS * HEAD_SIZE, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_SIZE, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_SIZE, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_SIZE),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
    "mlp.gate_up_proj": (2 * INNER, HIDDEN),
}
RANKS = [(rank, ranks) for ranks in (1, 2, 4) for rank in range(ranks)]
FORMS = [0, 1, 2]  # a step for all; groups and outliers; a step a column


@pytest.fixture(autouse=True)
def current() -> Iterator[None]:
    with set_current_vllm_config(VllmConfig()):
        yield


@pytest.fixture
def place(monkeypatch):
    """Return a function that tells vLLM which rank of how many this is."""

    def tell(rank: int, ranks: int) -> None:
        for module in (linear, vocab_parallel_embedding, "vllm.model_executor.parameter"):
            for name, number in (("rank", rank), ("world_size", ranks)):
                target = f"get_tensor_model_parallel_{name}"
                where = module if isinstance(module, str) else module.__name__
                monkeypatch.setattr(f"{where}.{target}", lambda number=number: number)

    return tell


def packed(name: str, form: int) -> Packed:
    seed = form + 3 * sorted(SHAPES).index(name)
    weight = torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(seed))
    return pack_layer(LAYER + name, weight, seed)


def config_of(*layers: Packed) -> NearplaneVllmConfig:
    entries = {
        p.report.name: {"bytes": len(p.record), "rows": p.report.rows, "columns": p.report.columns}
        for p in layers
    }
    made = NearplaneVllmConfig.from_config(
        {"quant_method": "nearplane", "format_version": 1, "layers": entries}
    )
    made.packed_modules_mapping = LlamaForCausalLM.packed_modules_mapping
    return made


def fill(layer: nn.Module, *tensors: tuple[str, Tensor, object]) -> nn.Module:
    """Load as vLLM does: (name of the parameter, tensor, which part of the layer it is)."""
    for name, tensor, part in tensors:
        param = layer.get_parameter(name)
        if part is None:
            param.weight_loader(param, tensor)
        else:
            param.weight_loader(param, tensor, part)
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def value_of(layer: nn.Module) -> Tensor:
    """Return what the layer multiplies by, decoded."""
    method = layer.quant_method
    blocks = [
        resident.value(layer.get_buffer(f"laid_{i}"), method.forms[i], len(s.rows), len(s.columns))
        for i, s in enumerate(method.shards)
    ]
    return torch.cat(blocks)


def assert_multiplies(layer: nn.Module, weight: Tensor, bias: Tensor | None = None) -> None:
    """The matrix is exactly `weight`; products are the float32 product but for its rounding."""
    assert torch.equal(value_of(layer), weight)
    x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(1))
    y = layer.quant_method.apply(layer, x, layer.bias)
    # sums of at most 32 terms, each rounded to 2^-24 of the largest
    size = x.abs() @ weight.abs().T + (0 if bias is None else bias.abs())
    assert ((y - F.linear(x, weight, bias)).abs() <= 32 * 2.0**-24 * size + 1e-7).all()


def qkv(form: int, bias: bool = False) -> tuple[nn.Module, dict[str, Packed]]:
    parts = {part: packed(f"self_attn.{part}_proj", form) for part in "qkv"}
    layer = linear.QKVParallelLinear(
        HIDDEN,
        HEAD_SIZE,
        HEADS,
        KV_HEADS,
        bias=bias,
        quant_config=config_of(*parts.values()),
        prefix=LAYER + "self_attn.qkv_proj",
    )
    return layer, parts


def heads(matrix: Tensor, part: str, rank: int, ranks: int) -> Tensor:
    """Return the rows of the heads that one rank computes."""
    count = HEADS if part == "q" else KV_HEADS
    here = max(1, count // ranks)
    first = rank * count // ranks
    return matrix[first * HEAD_SIZE : (first + here) * HEAD_SIZE]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rank", "ranks"), RANKS)
def test_fused_query_key_value(place, rank, ranks, form):
    place(rank, ranks)
    layer, parts = qkv(form)
    fill(layer, *(("record", parts[part].record, part) for part in "vqk"))
    assert_multiplies(
        layer, torch.cat([heads(parts[part].value, part, rank, ranks) for part in "qkv"])
    )
    assert "record" not in dict(layer.named_parameters())


@pytest.mark.parametrize(("rank", "ranks"), RANKS)
def test_biases_of_fused_layers(place, rank, ranks):
    place(rank, ranks)
    layer, parts = qkv(1, bias=True)
    biases = {part: torch.randn(parts[part].report.rows) for part in "qkv"}
    fill(
        layer,
        *(("record", parts[part].record, part) for part in "qkv"),
        *(("bias", biases[part], part) for part in "qkv"),
    )
    whole = {part: torch.cat([parts[part].value, biases[part][:, None]], 1) for part in "qkv"}
    mine = torch.cat([heads(whole[part], part, rank, ranks) for part in "qkv"])
    assert_multiplies(layer, mine[:, :-1], mine[:, -1])


def test_a_fused_layer_gives_what_its_parts_give(place):
    place(0, 1)
    layer, parts = qkv(2)
    fill(layer, *(("record", parts[part].record, part) for part in "qkv"))
    x = torch.randn(3, HIDDEN)
    alone = []
    for part in "qkv":
        one = packed(f"self_attn.{part}_proj", 2)
        single = linear.ReplicatedLinear(
            HIDDEN, one.report.rows, False, quant_config=config_of(one), prefix=one.report.name
        )
        fill(single, ("record", one.record, None))
        alone.append(single(x)[0])
    assert torch.equal(layer(x)[0], torch.cat(alone, -1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rank", "ranks"), RANKS)
def test_fused_gate_and_up(place, rank, ranks, form):
    place(rank, ranks)
    gate, up = packed("mlp.gate_proj", form), packed("mlp.up_proj", form)
    layer = linear.MergedColumnParallelLinear(
        HIDDEN,
        [INNER, INNER],
        bias=False,
        quant_config=config_of(gate, up),
        prefix=LAYER + "mlp.gate_up_proj",
    )
    up.record.shard_id, gate.record.shard_id = 1, 0
    assert list(layer.load_weights([("record", up.record), ("record", gate.record)]))
    layer.quant_method.process_weights_after_loading(layer)
    held = INNER // ranks
    mine = [p.value[rank * held : (rank + 1) * held] for p in (gate, up)]
    assert_multiplies(layer, torch.cat(mine))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", ["self_attn.o_proj", "mlp.down_proj"])
def test_columns_of_all_ranks_add_up(place, name, ranks, form):
    """32 columns of 4 ranks and 24 of 2 begin inside of groups of 10."""
    one, blocks, total = packed(name, form), [], torch.zeros(3, HIDDEN)
    x = torch.randn(3, one.report.columns)
    bias = torch.randn(HIDDEN)
    for rank in range(ranks):
        place(rank, ranks)
        layer = linear.RowParallelLinear(
            one.report.columns,
            HIDDEN,
            bias=True,
            reduce_results=False,
            skip_bias_add=True,
            quant_config=config_of(one),
            prefix=one.report.name,
        )
        fill(layer, ("record", one.record, None), ("bias", bias, None))
        blocks.append(value_of(layer))
        total += layer(x.chunk(ranks, -1)[rank])[0]
    assert torch.equal(torch.cat(blocks, 1), one.value)
    torch.testing.assert_close(total, x @ one.value.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rank", "ranks"), RANKS)
def test_layers_that_are_fused_on_disk(place, rank, ranks):
    place(rank, ranks)
    one = packed("mlp.gate_up_proj", 1)
    layer = linear.MergedColumnParallelLinear(
        HIDDEN,
        [INNER, INNER],
        bias=False,
        quant_config=config_of(one),
        prefix=one.report.name,
    )
    fill(layer, ("record", one.record, None))
    held = INNER // ranks
    rows = [*range(rank * held, (rank + 1) * held)]
    assert_multiplies(layer, one.value[rows + [INNER + row for row in rows]])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("vocabulary", [VOCABULARY, 60, 128])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_head_is_padded_with_zeros(place, vocabulary, ranks, form):
    weight = torch.randn(vocabulary, HIDDEN, generator=torch.Generator().manual_seed(0))
    one, x, logits = pack_layer("lm_head", weight, form), torch.randn(3, HIDDEN), []
    for rank in range(ranks):
        place(rank, ranks)
        head = ParallelLMHead(
            vocabulary, HIDDEN, quant_config=config_of(one), prefix="lm_head", bias=form == 0
        )
        tensors = [("record", one.record, None)]
        if form == 0:
            tensors.append(("bias", torch.arange(vocabulary).float(), None))
        fill(head, *tensors)
        logits.append(head.quant_method.apply(head, x, head.bias))
        assert logits[-1].shape == (3, head.num_embeddings_per_partition)
    together = torch.cat(logits, -1)
    expected = x @ one.value.T + (torch.arange(vocabulary) if form == 0 else 0)
    torch.testing.assert_close(together[:, :vocabulary], expected, rtol=1e-5, atol=1e-5)
    assert not together[:, vocabulary:].any() and together.shape[1] % 64 == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_tokens_are_looked_up_by_the_process_that_holds_them(place, ranks, form, monkeypatch):
    """vLLM adds up what all processes give."""
    where = vocab_parallel_embedding
    monkeypatch.setattr(where, "tensor_model_parallel_all_reduce", lambda part: part)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(0))
    one = pack_layer("model.embed_tokens", weight, form)
    index, found, logits = torch.tensor([[0, VOCABULARY - 1, 5], [31, 32, 5]]), 0, []
    x = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(1))
    for rank in range(ranks):
        place(rank, ranks)
        made = config_of(one)
        embedding = VocabParallelEmbedding(
            VOCABULARY, HIDDEN, quant_config=made, prefix="model.embed_tokens"
        )
        fill(embedding, ("record", one.record, None))
        found = found + embedding(index)
        monkeypatch.setattr("nearplane.export.vllm.config._is_tied", lambda: True)
        head = ParallelLMHead(VOCABULARY, HIDDEN, quant_config=made, prefix="lm_head")
        head = head.tie_weights(embedding)
        assert not list(head.parameters())
        logits.append(head.quant_method.apply(head, x))
    assert torch.equal(found, one.value[index])
    together = torch.cat(logits, -1)[:, :VOCABULARY]
    torch.testing.assert_close(together, x @ one.value.T, rtol=1e-5, atol=1e-5)


def test_layers_that_are_not_listed_stay_as_they_are(place):
    place(0, 1)
    made = config_of(packed("self_attn.q_proj", 0))
    plain = linear.ReplicatedLinear(8, 8, quant_config=made, prefix=LAYER + "mlp.down_proj")
    assert isinstance(plain.quant_method, UnquantizedLinearMethod)
    head = ParallelLMHead(VOCABULARY, HIDDEN, quant_config=made, prefix="lm_head")
    assert not isinstance(head.quant_method, NearplaneHeadMethod)
    assert made.get_quant_method(nn.Module(), LAYER + "self_attn.attn") is None


def test_fused_layers_of_which_a_part_is_not_compressed_are_refused(place):
    place(0, 1)
    made = config_of(packed("mlp.gate_proj", 0))
    with pytest.raises(NearplaneError, match="all of them must be .*up_proj is not"):
        linear.MergedColumnParallelLinear(
            HIDDEN, [INNER, INNER], False, quant_config=made, prefix=LAYER + "mlp.gate_up_proj"
        )


def test_a_record_that_no_layer_takes_is_refused(place):
    place(0, 1)
    one, other = packed("mlp.down_proj", 1), packed("mlp.up_proj", 1)
    layer = linear.RowParallelLinear(
        INNER, HIDDEN, bias=False, quant_config=config_of(one, other), prefix=one.report.name
    )
    with pytest.raises(NearplaneError, match="mlp.up_proj is compressed, .* has no such layer"):
        fill(layer, ("record", one.record, None))


def test_a_stage_of_a_pipeline_has_some_of_the_layers():
    made = config_of(packed("mlp.down_proj", 1))
    made.pipelined = True
    made.check_found()


def test_compressed_experts_are_refused(place):
    place(0, 1)
    one = packed("mlp.down_proj", 1)
    experts = RoutedExperts.__new__(RoutedExperts)
    made = config_of(one)
    with pytest.raises(NearplaneError, match="down_proj is compressed, but .* experts together"):
        made.get_quant_method(experts, LAYER + "mlp")
    assert made.get_quant_method(experts, LAYER + "other") is None


def test_a_tied_head_is_refused(place):
    place(0, 1)
    one = pack_layer("lm_head", torch.randn(VOCABULARY, HIDDEN), 0)
    head = ParallelLMHead(VOCABULARY, HIDDEN, quant_config=config_of(one), prefix="lm_head")
    with pytest.raises(NearplaneError, match="tie_word_embeddings = false"):
        head.tie_weights(head)


def down(place) -> tuple[nn.Module, Packed]:
    place(0, 1)
    one = packed("mlp.down_proj", 1)
    layer = linear.RowParallelLinear(
        INNER, HIDDEN, bias=False, quant_config=config_of(one), prefix=one.report.name
    )
    return layer, one


def test_a_record_that_is_missing_or_damaged_is_refused(place):
    layer, one = down(place)
    with pytest.raises(NearplaneError, match="down_proj: a record begins with"):
        fill(layer)
    record = one.record.clone()
    record[40] ^= 1
    with pytest.raises(NearplaneError, match="down_proj: the record's CRC-32"):
        fill(layer, ("record", record, None))
    with pytest.raises(NearplaneError, match="down_proj: the record has shape"):
        fill(layer, ("record", record[1:], None))


def test_a_record_of_another_shape_is_refused(place):
    layer, _ = down(place)
    right, wrong = (
        codes.pack(torch.zeros(shape, dtype=torch.int32), torch.ones(1, 1), shape[1])[0]
        for shape in ((HIDDEN, INNER), (INNER, HIDDEN))
    )
    assert len(right) == len(wrong)
    stored = LayerEntry("x", len(right), HIDDEN, INNER)
    layer.quant_method.parts[0] = stored
    layer.record = nn.Parameter(wrong, requires_grad=False)
    with pytest.raises(NearplaneError, match="x: the record is of 24 x 30 weights"):
        layer.quant_method.process_weights_after_loading(layer)


def test_a_layer_of_another_shape_is_refused(place):
    place(0, 1)
    made = config_of(packed("mlp.down_proj", 1))
    for inputs, outputs, said in ((INNER + 1, HIDDEN, "25 inputs"), (INNER, HIDDEN - 1, "30 rows")):
        with pytest.raises(NearplaneError, match=said):
            linear.RowParallelLinear(
                inputs, outputs, bias=False, quant_config=made, prefix=LAYER + "mlp.down_proj"
            )


def test_names_follow_the_model(place):
    from vllm.model_executor.models.utils import WeightsMapper

    made = config_of(packed("mlp.down_proj", 0))
    mapper = WeightsMapper(orig_to_new_prefix={"model.": "language_model.model."})
    made.apply_vllm_mapper(mapper)
    assert isinstance(made.parts_of("language_model." + LAYER + "mlp.down_proj"), list)
    assert list(made.layers) == ["language_model." + LAYER + "mlp.down_proj"]


def test_whole_records_are_freed(place):
    layer, one = down(place)
    fill(layer, ("record", one.record, None))
    assert not list(layer.parameters()) and list(layer.state_dict()) == []
    assert isinstance(layer.quant_method, NearplaneLinearMethod)


def test_without_kernels_every_part_keeps_its_own_bytes_alone(place, monkeypatch):
    monkeypatch.setattr(resident.lay_out, "versions", {})
    place(0, 1)
    layer, parts = qkv(1)
    fill(layer, *(("record", parts[part].record, part) for part in "qkv"))
    assert layer.quant_method.forms == [resident.RECORD] * 3
    for number, part in enumerate("qkv"):
        held = layer.get_buffer(f"laid_{number}")
        assert torch.equal(held, parts[part].record)
        assert held.untyped_storage().nbytes() == len(parts[part].record)

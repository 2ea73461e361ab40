"""Imports: the integers and steps that another package chose, whatever it is, and nothing else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import nearplane as npl
from nearplane.evaluate.verify import verify, verify_against
from nearplane.export.formats import export
from nearplane.export.import_checkpoint import import_checkpoint, shortest
from nearplane.export.packed_layers import (
    awq_layer,
    compressed_tensors_layer,
    gptq_layer,
    unpacked,
)
from nearplane.methods import GPTQ, HPTQ, RTN
from nearplane.pipeline import quantize
from nearplane.report.reading import read_report
from nearplane.types import NearplaneError, value
from tests.export.test_gguf import TOKENS, model_of
from tests.export.test_packed_formats import KEEP, decode

AWQ_PACKS = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ's order_map: what place i of a word holds


def packed(code: torch.Tensor, bits: int) -> torch.Tensor:
    """Return words along the rows of a matrix, bit by bit, lowest first."""
    bit = (code.numpy().astype(np.uint64)[..., None] >> np.arange(bits, dtype=np.uint64)) & 1
    flat = bit.reshape(len(code), -1).astype(np.uint8)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 32)))
    return torch.from_numpy(np.packbits(flat, axis=1, bitorder="little").view(np.int32))


def drawn(rows: int, columns: int, size: int, bits: int, seed: int):
    draws = torch.Generator().manual_seed(seed)
    groups = -(-columns // size)
    code = torch.randint(0, 2**bits, (rows, columns), generator=draws, dtype=torch.int32)
    zero = torch.randint(1, 2**bits, (rows, groups), generator=draws, dtype=torch.int32)
    return code, zero, torch.rand(rows, groups, generator=draws).half() + 0.5


def expected(code, zero, scale, size):
    group = torch.arange(code.shape[1]) // size
    return scale.float()[:, group] * (code - zero[:, group])


sizes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.sampled_from([16, 32, 48]))
seeds = st.integers(0, 2**32)


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 70), seeds)
def test_integers_are_unpacked_as_they_were_packed(bits, rows, columns, seed):
    code = drawn(rows, columns, columns, bits, seed)[0]
    assert unpacked(packed(code, bits), bits, columns).equal(code)


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@given(st.sampled_from([2, 3, 4, 8]), sizes, seeds)
def test_gptq_layers(version, bits, shape, seed):
    """With zero points of their own; a record of it has the same value."""
    rows, columns, size = 32 * shape[0], 32 * shape[1], shape[2]
    code, zero, scale = drawn(rows, columns, size, bits, seed)
    stored = zero - int(version == "gptq")
    parts = {"qweight": packed(code, bits).T.contiguous(), "scales": scale.T.contiguous()}
    parts["qzeros"] = packed(stored.T.contiguous(), bits)
    parts["g_idx"] = (torch.arange(columns) // size).int()
    found = gptq_layer(parts, {"checkpoint_format": version})
    assert value(found.code, found.step, found.group_size, None).equal(
        expected(code, zero, scale, size)
    )
    record, _ = shortest(found)
    held = npl.codes.unpack(record)
    assert held.code.equal(found.code) and held.step.equal(found.step)


@given(sizes, seeds)
def test_awq_layers(shape, seed):
    rows, columns, size = 8 * shape[0], 32 * shape[1], shape[2]
    code, zero, scale = drawn(rows, columns, size, 4, seed)

    def words(matrix):
        return packed(matrix.reshape(len(matrix), -1, 8)[:, :, AWQ_PACKS].flatten(1), 4)

    parts = {"qweight": words(code.T.contiguous()), "qzeros": words(zero.T.contiguous())}
    parts["scales"] = scale.T.contiguous()
    found = awq_layer(parts, {"version": "gemm", "group_size": size})
    assert value(found.code, found.step, found.group_size, None).equal(
        expected(code, zero, scale, size)
    )


@pytest.mark.parametrize("symmetric", [False, True])
@given(st.integers(2, 8), sizes, st.integers(1, 40), seeds)
def test_compressed_tensors_layers(symmetric, bits, shape, columns, seed):
    """Packed by the package itself; columns and rows as they come."""
    rows, size, half = 3 * shape[0], shape[2], 1 << bits - 1
    columns = columns if columns <= size else columns // size * size
    code, zero, scale = drawn(rows, columns, size, bits, seed)
    zero = torch.full_like(zero, half) if symmetric else zero
    parts = {"weight_packed": pack_to_int32((code - half).to(torch.int8), bits)}
    parts |= {"weight_scale": scale, "weight_shape": torch.tensor([rows, columns])}
    if not symmetric:
        signed = (zero - half).to(torch.int8)
        parts["weight_zero_point"] = pack_to_int32(signed, bits, packed_dim=0).contiguous()
    found = compressed_tensors_layer(parts, {"num_bits": bits, "group_size": size})
    assert value(found.code, found.step, found.group_size, None).equal(
        expected(code, zero, scale, size)
    )


STRATEGIES = ["tensor", "channel", "group"]


def compressed(weight, strategy, symmetric, bits, form):
    """Return the tensors of a layer, and its weight, by compressed-tensors' own compressor."""
    own = {"group_size": 16} if strategy == "group" else {}
    arguments = QuantizationArgs(num_bits=bits, strategy=strategy, symmetric=symmetric, **own)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments, format=form)
    grouped = weight if strategy != "group" else weight.unflatten(1, (-1, 16))
    axes = tuple(range(weight.ndim)) if strategy == "tensor" else (-1,)
    limits = grouped.amin(axes), grouped.amax(axes)
    if strategy == "tensor":
        limits = tuple(limit.reshape(1) for limit in limits)
    elif strategy == "channel":
        limits = tuple(limit[:, None] for limit in limits)
    scale, zero = calculate_qparams(*limits, arguments)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    compressor = BaseCompressor.get_value_from_registry(form)
    made = compressor.compress(state, scheme)
    return made, compressor.decompress(made, scheme)["weight"], scheme


@pytest.mark.parametrize("form", ["pack-quantized", "naive-quantized"])
@pytest.mark.parametrize("strategy", STRATEGIES)
# the package does not read zero points of so few rows that one word holds them
@given(st.booleans(), st.integers(2, 8), st.integers(33, 40), seeds)
def test_every_strategy_of_compressed_tensors(form, strategy, symmetric, bits, rows, seed):
    """One scale for all, for a row or for 16 columns, with zero points or without."""
    weight = torch.randn(rows, 48, generator=torch.Generator().manual_seed(seed))
    parts, back, scheme = compressed(weight, strategy, symmetric, bits, form)
    settings = json.loads(scheme.weights.model_dump_json()) | {"format": form}
    found = compressed_tensors_layer(parts, settings)
    assert value(found.code, found.step, found.group_size, None).equal(back)
    record, _ = shortest(found)
    assert npl.codes.unpack(record).code.equal(found.code)


def test_formats_are_mixed_in_a_checkpoint(tmp_path):
    """Each layer by the entry of `config_groups` that names it; another format is refused."""
    model = model_of("llama", tmp_path / "model")
    held, groups = model.state_dict(), {}
    for number, (strategy, form, name) in enumerate(
        [("tensor", "naive-quantized", "mlp"), ("group", "pack-quantized", "self_attn")]
    ):
        for layer in [n.removesuffix(".weight") for n in held if f"{name}." in n]:
            weight = held.pop(f"{layer}.weight")
            parts, back, scheme = compressed(weight, strategy, False, 4 + number, form)
            held |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
            model.get_submodule(layer).weight.data = back
        entry = json.loads(scheme.model_dump_json())
        groups[f"group_{number}"] = entry | {"targets": [f"re:.*{name}.*"]}
    save_file(
        {n: t.contiguous() for n, t in held.items() if n != "lm_head.weight" or "embed" not in n},
        tmp_path / "model" / "model.safetensors",
    )
    path = tmp_path / "model" / "config.json"
    settings = {"quant_method": "compressed-tensors", "format": "mixed-precision"}
    config = json.loads(path.read_text())
    config["quantization_config"] = settings | {"config_groups": groups}
    path.write_text(json.dumps(config))
    back = npl.load(import_checkpoint(tmp_path / "model", tmp_path / "back"), dequantize=True)
    for name, tensor in model.state_dict().items():
        assert back.state_dict()[name].equal(tensor), name
    groups["group_0"]["format"] = "float-quantized"
    path.write_text(json.dumps(config))
    with pytest.raises(NearplaneError, match=r"mlp.*: the format 'float-quantized' of compressed-"):
        import_checkpoint(tmp_path / "model", tmp_path / "again")


@pytest.mark.parametrize(
    ("to", "method"),
    [
        ("gptq", RTN(bits=4, group_size=32)),
        ("gptq_v2", HPTQ(bpw=3.0)),
        ("compressed-tensors", GPTQ(bits=3, group_size=16)),
        ("compressed-tensors", HPTQ(bpw=3.0)),
    ],
    ids=str,
)
def test_an_export_comes_back(to, method, tmp_path):
    """Values are equal, logits too, and files are whole; the decoder is that of benches."""
    model_of("llama", tmp_path / "model")
    quantize(tmp_path / "model", tmp_path / "out", method, TOKENS, rules=KEEP)
    foreign, said = export(tmp_path / "out", tmp_path / "foreign", to), []
    back = import_checkpoint(foreign, tmp_path / "back", said.append)
    run, page = read_report(back), (back / "report.html").read_text()
    assert run.method == "imported" and run.layers and run.kept and not run.certified
    assert "What rounding cost is not known" in page and "no bound for" in page
    assert "the same integers" in said[0] and f"layers of {to.removesuffix('_v2')}" in said[0]
    wanted = npl.load(tmp_path / "out", dequantize=True, dtype=torch.float32)
    found = npl.load(back, dequantize=True, dtype=torch.float32)
    for name, tensor in decode.decode(foreign).items():
        assert found.state_dict()[name].equal(tensor)
    checked = verify(str(back))
    assert not checked.problems and "which are imported" in checked.checked[-1]
    with pytest.raises(NearplaneError, match="was imported"):
        verify_against(str(back), str(tmp_path / "model"))
    with torch.no_grad():
        assert found(TOKENS).logits.equal(wanted(TOKENS).logits)
        laid = npl.load(back, dtype=torch.float32)(TOKENS).logits
    assert torch.allclose(laid, wanted(TOKENS).logits, atol=1e-3)


def test_mixtures_with_other_names_and_missing_tensors_are_refused(foreign, tmp_path):
    """What transformers would rename on loading, and what would not load."""
    file = foreign / "model.safetensors"
    held = load_file(file)
    one = next(name for name in held if name.endswith("q_proj.qweight")).rpartition(".")[0]
    parts = {name: held.pop(name) for name in list(held) if name.startswith(one)}
    save_file(held, file)
    with pytest.raises(NearplaneError, match=r"lacks 1 tensors of LlamaForCausalLM: .*q_proj"):
        import_checkpoint(foreign, tmp_path / "back")
    renamed = {name.replace("self_attn", "attention"): part for name, part in parts.items()}
    save_file(held | renamed, file)
    with pytest.raises(NearplaneError, match=r"has no layer model.layers.0.attention.q_proj"):
        import_checkpoint(foreign, tmp_path / "back")
    extra = {f"{one}.other": torch.ones(2)}
    save_file(held | parts | extra, foreign / "gptq_model-4bit-32g.safetensors")
    file.unlink()
    said = []
    import_checkpoint(foreign, tmp_path / "back", said.append)
    assert said[0].startswith("left behind, as the model does not take them: model.layers.0")
    assert npl.load(tmp_path / "back")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, its checkpoint and its export to GPTQ, not to be altered."""
    place = tmp_path_factory.mktemp("exported")
    model_of("llama", place / "model")
    quantize(place / "model", place / "out", RTN(bits=4, group_size=32), TOKENS, rules=KEEP)
    export(place / "out", place / "foreign", "gptq")
    return place


@pytest.fixture
def foreign(exported, tmp_path):
    """A copy of the export."""
    return Path(shutil.copytree(exported / "foreign", tmp_path / "foreign"))


def alter(folder, settings=None, **tensors):
    """Change settings, and tensors of the first packed layer; None removes one."""
    path, file = folder / "config.json", folder / "model.safetensors"
    config = json.loads(path.read_text())
    config["quantization_config"].update(settings or {})
    path.write_text(json.dumps(config))
    held = load_file(file)
    layer = next(n for n in sorted(held) if n.endswith("qweight")).rpartition(".")[0]
    for part, change in tensors.items():
        name = f"{layer}.{part}"
        held[name] = None if change is None else change(held[name])
    save_file({n: t for n, t in held.items() if t is not None}, file)


def swapped(tensor):
    return tensor.flip(0).contiguous()


@pytest.mark.parametrize(
    ("settings", "tensors", "reason"),
    [
        ({"quant_method": "bitsandbytes"}, {}, "quant_method 'bitsandbytes'; what can be"),
        ({"checkpoint_format": "marlin"}, {}, "the format 'marlin' of GPTQ is not read"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:awq"}, {}, "packing"),
        ({"transform_config": {"config_groups": {}}}, {}, "a model with transform_config"),
        ({"sparsity_config": {"format": "sparse-bitmask"}}, {}, "a model with sparsity_config"),
        ({}, {"scales": lambda t: t * float("nan")}, "a scale that is not finite"),
        ({}, {"qzeros": None}, "there is no qzeros"),
        ({}, {"g_idx": swapped}, r"neighbours \(desc_act\) cannot be imported"),
        ({}, {"qweight": lambda t: t[:-1].contiguous()}, "cannot be imported"),
        ({}, {"qweight": lambda t: t.long()}, "qweight cannot be imported"),
        ({}, {"scales": lambda t: t[:, :-1].contiguous()}, "cannot be imported"),
        ({}, {"qzeros": lambda t: torch.full_like(t, -1)}, "a zero point that 1 cannot be added"),
        ({}, {"qweight": None}, "belongs to no layer that is packed"),
    ],
)
def test_what_cannot_be_read_is_refused(settings, tensors, reason, foreign, tmp_path):
    alter(foreign, settings, **tensors)
    with pytest.raises(NearplaneError, match=reason):
        import_checkpoint(foreign, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_other_checkpoints_are_refused(exported, foreign, tmp_path):
    for folder, reason in (
        (exported / "model", "no quantization_config"),
        (exported / "out", "is a nearplane checkpoint already"),
        (tmp_path / "missing", "is no directory"),
    ):
        with pytest.raises(NearplaneError, match=reason):
            import_checkpoint(folder, tmp_path / "back")
    file = foreign / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(NearplaneError, match="cannot be read"):
        import_checkpoint(foreign, tmp_path / "back")
    assert not (tmp_path / "back").exists()

"""Damage is found, and hostile files are refused with a sentence."""

import json
import random
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import nearplane as npl
from nearplane import NearplaneError
from nearplane.export import checkpoint_format as fmt
from nearplane.export import checkpoint_reader, checksums
from nearplane.export.checkpoint_reader import check_layers, open_checkpoint
from tests.export import tiny

CUT = 100  # bytes that a truncated file keeps


@pytest.fixture
def sharded(tmp_path):
    tiny.write(tiny.llama(), tmp_path / "out", max_shard_bytes=20_000)
    return tmp_path / "out"


def replace_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_whole_checkpoint_has_no_problem(written):
    for family in tiny.FAMILIES:
        path = written(family).path
        assert checksums.verify_sums(path) == []
        assert check_layers(path) == []


def test_records_are_read_one_by_one(written):
    checkpoint = open_checkpoint(written("llama").path)
    records = dict(checkpoint.records())
    assert records.keys() == checkpoint.layers.keys() and len(records) == 14
    for name, record in records.items():
        assert len(record) == checkpoint.layers[name]["bytes"]


def test_one_flipped_bit_anywhere_is_found(altered):
    files = [*checksums.listed_files(altered), checksums.SUMS]
    assert len(files) == 5
    choose = random.Random(0)
    for name in files:
        path = altered / name
        content = path.read_bytes()
        places = {0, len(content) - 1, *(choose.randrange(len(content)) for _ in range(20))}
        for place in places:
            flipped = bytearray(content)
            flipped[place] ^= 1 << choose.randrange(8)
            path.write_bytes(flipped)
            assert checksums.verify_sums(altered), f"{name}, byte {place}"
        path.write_bytes(content)
    assert checksums.verify_sums(altered) == []


def test_sums_name_what_differs(altered):
    (altered / "extra.txt").touch()
    (altered / "notes" / "a.txt").unlink()
    (altered / ".gitattributes").touch()
    problems = "\n".join(checksums.verify_sums(altered))
    assert "'extra.txt' is not listed" in problems
    assert "'notes/a.txt' is listed in SHA256SUMS but missing" in problems
    assert "gitattributes" not in problems


def test_sums_in_another_order_are_not_canonical(altered):
    path = altered / checksums.SUMS
    path.write_bytes(b"".join(reversed(path.read_bytes().splitlines(keepends=True))))
    assert checksums.verify_sums(altered) == ["SHA256SUMS is not in its canonical form"]


def test_sums_that_are_missing(altered, tmp_path):
    (altered / checksums.SUMS).unlink()
    assert checksums.verify_sums(altered) == ["SHA256SUMS is missing"]
    with pytest.raises(NearplaneError, match="no directory"):
        checksums.verify_sums(tmp_path / "absent")


@pytest.mark.parametrize("read", [npl.load, AutoModelForCausalLM.from_pretrained])
def test_flipped_bit_in_a_record_stops_loading(read, altered):
    def flip(tensors):
        name = min(name for name in tensors if name.endswith(".record"))
        tensors[name][40] ^= 4

    replace_tensors(altered / fmt.SINGLE, flip)
    with pytest.raises(NearplaneError, match="layers.0.*CRC-32"):
        read(altered)
    assert "CRC-32" in check_layers(altered)[0]


@pytest.mark.parametrize("read", [npl.load, AutoModelForCausalLM.from_pretrained])
def test_missing_record_stops_loading(read, altered):
    name = "model.layers.1.mlp.up_proj.record"
    replace_tensors(altered / fmt.SINGLE, lambda tensors: tensors.pop(name))
    with pytest.raises(NearplaneError, match=f"lack the tensor '{name}'"):
        read(altered)
    assert any(name in problem for problem in check_layers(altered))


def test_missing_bias_stops_loading(written, tmp_path):
    copy = shutil.copytree(written("qwen2").path, tmp_path / "copy")
    name = "model.layers.1.self_attn.q_proj.bias"
    replace_tensors(copy / fmt.SINGLE, lambda tensors: tensors.pop(name))
    with pytest.raises(NearplaneError, match=f"lack the tensor '{name}'"):
        AutoModelForCausalLM.from_pretrained(copy)


def test_missing_tensor_of_another_kind_stops_loading(altered):
    replace_tensors(altered / fmt.SINGLE, lambda t: t.pop("model.embed_tokens.weight"))
    with pytest.raises(NearplaneError, match=r"lacks 1 tensors .*embed_tokens"):
        npl.load(altered)


def test_record_of_another_type(altered):
    def widen(tensors):
        name = min(name for name in tensors if name.endswith(".record"))
        tensors[name] = tensors[name].to(torch.float32)

    replace_tensors(altered / fmt.SINGLE, widen)
    # transformers casts it back to bytes, so that it loads; but it is not what the format says
    assert "of torch.float32" in check_layers(altered)[0]


def test_record_that_no_layer_knows(altered):
    replace_tensors(altered / fmt.SINGLE, lambda t: t.update({"x.record": torch.ones(9).byte()}))
    assert "x.record is in no layer of config.json" in check_layers(altered)


def test_record_in_another_layers_place(altered):
    def swap(tensors):
        a, b = (f"model.layers.0.mlp.{x}_proj.record" for x in ("down", "up"))
        tensors[a], tensors[b] = tensors[b], tensors[a]

    replace_tensors(altered / fmt.SINGLE, swap)
    assert len(check_layers(altered)) == 2
    with pytest.raises(NearplaneError, match="config.json says"):
        npl.load(altered)


@pytest.mark.parametrize("size", [0, 7, 8, CUT, -1])
def test_truncated_single_file(size, altered):
    path = altered / fmt.SINGLE
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(NearplaneError, match="model.safetensors cannot be read"):
        npl.load(altered)
    assert "cannot be read" in check_layers(altered)[0]


def test_truncated_and_missing_shards(sharded):
    first, second, *_ = sorted(sharded.glob("model-*.safetensors"))
    first.write_bytes(first.read_bytes()[:CUT])
    with pytest.raises(NearplaneError, match=f"{first.name} cannot be read"):
        npl.load(sharded)
    second.unlink()
    problems = "\n".join(check_layers(sharded))
    assert first.name in problems and second.name in problems


def test_safetensors_header_that_promises_too_much(altered):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    for start in (struct.pack("<Q", 2**62), struct.pack("<Q", len(header))):
        (altered / fmt.SINGLE).write_bytes(start + header.encode())
        with pytest.raises(NearplaneError, match="cannot be read"):
            open_checkpoint(altered)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b"[" * 100_000, b"1" * 5000, b""])
@pytest.mark.parametrize("name", ["config.json", fmt.INDEX])
def test_bad_json_names_its_file(content, name, sharded):
    (sharded / name).write_bytes(content)
    with pytest.raises(NearplaneError, match=name):
        npl.load(sharded)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", "", 3, None]
)
def test_index_that_points_elsewhere(file, sharded):
    path = sharded / fmt.INDEX
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = file
    path.write_text(json.dumps(index))
    with pytest.raises(NearplaneError, match="is no shard's name"):
        npl.load(sharded)


def test_index_that_disagrees_with_its_shards(sharded):
    path = sharded / fmt.INDEX
    index = json.loads(path.read_text())
    index["weight_map"]["ghost"] = index["weight_map"].pop("lm_head.weight")
    path.write_text(json.dumps(index))
    problems = "\n".join(check_layers(sharded))
    assert "lacks the tensor 'ghost'" in problems
    assert "holds 'lm_head.weight', not in the index" in problems


def test_index_without_a_map(sharded):
    (sharded / fmt.INDEX).write_text("{}")
    with pytest.raises(NearplaneError, match="no weight_map"):
        npl.load(sharded)


def test_tensor_that_is_not_there(written):
    checkpoint = checkpoint_reader.open_checkpoint(written("llama").path)
    with pytest.raises(NearplaneError, match="no tensor 'ghost'"):
        checkpoint.tensor("ghost")

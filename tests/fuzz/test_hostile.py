"""Files made to do harm: each is refused at once, in a sentence that names it."""

import json
import os
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import nearplane as npl
from nearplane.evaluate.bits import count_bytes
from nearplane.evaluate.verify import verify
from nearplane.export import checkpoint_format as fmt
from nearplane.export import checksums
from nearplane.export.checkpoint_reader import check_layers, open_checkpoint
from nearplane.export.checkpoint_writer import CheckpointWriter
from nearplane.export.companion_files import companion_files
from nearplane.export.load import load_tokenizer
from nearplane.model.open_model import open_model, open_tokenizer
from nearplane.report.report_json import few_token_sentences
from nearplane.types import NearplaneError
from nearplane.walk.calibration import CalibrationRequest, calibrate
from tests.cli import tiny
from tests.fuzz import directories
from tests.fuzz.mutate import assert_one_sentence

SOON_S = 10  # of a busy machine; memory for what is promised would take longer, or fail
HOSTILE_NAMES = [
    *("../x", "/etc/x", "a/../../x", "..", ".", "", ".hidden", "a/.b", "a//b", "./a", "a/"),
    *("a\0b", "a\nb", "a\\b", "\u202egpj.exe", "\ud800", "~/x\x7f"),
]


def edited(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(function, *words, says: str) -> str:
    began = time.monotonic()
    with pytest.raises(NearplaneError, match=says) as raised:
        function(*words)
    assert time.monotonic() - began < SOON_S
    assert_one_sentence(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_name_leaves_the_output_directory(name, tmp_path):
    config = {"quantization_config": fmt.quantization_config({}, [])}
    with pytest.raises(NearplaneError):
        with CheckpointWriter(tmp_path / "in" / "out") as writer:
            writer.finish(config, {name: b"x"})
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]


@pytest.mark.parametrize("name", ["x" * 300, "é" * 200])
def test_a_name_that_is_too_long_leaves_nothing(name, tmp_path):
    config = {"quantization_config": fmt.quantization_config({}, [])}
    with pytest.raises((NearplaneError, OSError)):
        with CheckpointWriter(tmp_path / "out") as writer:
            writer.finish(config, {name: b"x"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "x" * 5000])
def test_no_shard_lies_elsewhere(name, copied):
    for kind, read in (("shards", npl.load), ("model in shards", open_model)):
        copy = copied(kind)
        index = copy / fmt.INDEX
        files = json.loads(index.read_text())["weight_map"]
        for hostile in (name, f"{name}.safetensors"):
            if hostile in (".hidden.safetensors", "...safetensors", "..safetensors"):
                continue
            edited(index, weight_map=files | {min(files): hostile})
            with pytest.raises(NearplaneError):
                read(copy)
        os.rename(copy, copy.with_name(kind))


def test_pipes_and_devices_are_not_waited_for(copied, tmp_path):
    copy = copied("checkpoint")
    (copy / fmt.SINGLE).unlink()
    os.mkfifo(copy / fmt.SINGLE)
    refused(open_checkpoint, copy, says="no regular file")
    (copy / "zeros").symlink_to("/dev/zero")
    assert checksums.verify_sums(copy) == [
        "'model.safetensors' is no regular file",
        "'zeros' is no regular file",
    ]
    (copy / fmt.CONFIG).unlink()
    os.mkfifo(copy / fmt.CONFIG)
    refused(open_checkpoint, copy, says="holds no config.json")


def test_a_name_that_is_no_text_is_said(copied):
    copy = copied("checkpoint")
    Path(os.fsdecode(os.fsencode(copy) + b"/\xff")).touch()
    assert checksums.verify_sums(copy) == ["a file's name is not UTF-8"]


def test_a_link_out_of_the_model_is_not_copied_into_the_checkpoint(copied, tmp_path):
    copy = copied("model")
    assert "tokenizer.json" in companion_files(copy)
    (tmp_path / "secret").write_text("secret")
    (copy / "LICENSE").symlink_to(tmp_path / "secret")
    refused(companion_files, copy, says="LICENSE is a link out of its model's directory")


def test_the_hubs_own_links_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "model" / "snapshots" / "a", tmp_path / "model" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_text("x")
    (snapshot / "LICENSE").symlink_to("../../blobs/1")
    assert list(companion_files(snapshot)) == ["LICENSE"]


def test_weights_that_are_not_the_checkpoints_own(copied):
    copy = copied("shards")
    (copy / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/else"}')
    refused(npl.load, copy, says="not a checkpoint's own")
    (copy / "adapter_config.json").unlink()
    edited(copy / fmt.CONFIG, transformers_weights="adapter_model.bin")
    refused(npl.load, copy, says="not a checkpoint's own")
    edited(copy / fmt.CONFIG, transformers_weights=None)
    save_file({"a": torch.zeros(1)}, copy / fmt.SINGLE)
    refused(npl.load, copy, says="holds both")


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"num_hidden_layers": 10**9}, "asks for 1000000000 blocks"),
        ({"vocab_size": 2**40}, "asks for a model of [0-9,]* numbers"),
        ({"vocab_size": 10**400}, "cannot be loaded"),
        ({"hidden_size": 2**31}, "config.json asks|but the model has|cannot be"),
        ({"model_type": {"a": 1}}, "cannot be (loaded|opened)"),
    ],
)
def test_a_configuration_that_asks_for_more_than_the_files_hold(changes, says, copied):
    for kind, read in (("checkpoint", npl.load), ("model", open_model)):
        copy = copied(kind)
        edited(copy / fmt.CONFIG, **changes)
        if kind == "model" and "vocab_size" in changes:
            says = "config.json asks for|cannot be loaded"
        refused(read, copy, says=says)
        os.rename(copy, copy.with_name(kind))


@pytest.mark.parametrize(
    "key, value",
    [
        *(("bound", "x"), ("loss", 10**400), ("facts", [1]), ("facts", {"entropy": "x"})),
        *(("void", 3), ("void", "a\nb"), ("weight_error", True), ("tokens", {})),
    ],
)
def test_certificates_of_the_wrong_type(key, value, copied):
    copy = copied("checkpoint")
    config = json.loads((copy / fmt.CONFIG).read_text())
    entries = config["quantization_config"]["layers"]
    entries[min(entries)][key] = value
    (copy / fmt.CONFIG).write_text(json.dumps(config))
    refused(open_checkpoint, copy, says=f"has a {key} of the wrong type")
    assert any("wrong type" in problem for problem in verify(str(copy)).problems)


def test_certificates_of_odd_numbers_and_names_are_shown(copied):
    """JSON has one kind of number, and a layer may have any name and any facts."""
    copy = copied("checkpoint")
    config = json.loads((copy / fmt.CONFIG).read_text())
    entries = config["quantization_config"]["layers"]
    for entry in entries.values():
        entry |= {"loss": 3, "damped_loss": 2**62, "energy": 7, "bound": 2**62, "tokens": None}
        entry["facts"] = {"borrowed": None, "entropy": 3, "am_gm_bits": None}
    (copy / fmt.CONFIG).write_text(json.dumps(config))
    directories.read_all(copy)
    assert few_token_sentences({"plain": {"facts": {"borrowed": 1.0}}}) == []


def test_a_bound_that_is_no_number_bounds_nothing(copied):
    copy = copied("checkpoint")
    config = json.loads((copy / fmt.CONFIG).read_text())
    entries = config["quantization_config"]["layers"]
    entries[min(entries)]["bound"] = float("nan")
    (copy / fmt.CONFIG).write_text(json.dumps(config))
    assert any("above its bound nan" in problem for problem in verify(str(copy)).problems)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.int64])
def test_a_record_of_another_type_is_refused_by_every_reader(dtype, copied):
    copy = copied("checkpoint")
    tensors = load_file(copy / fmt.SINGLE)
    name = min(name for name in tensors if name.endswith(fmt.RECORD))
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, copy / fmt.SINGLE, metadata=fmt.METADATA)
    refused(count_bytes, copy, says="the record has shape")
    assert any("the record has shape" in problem for problem in check_layers(copy))


SHARD_DAMAGE = {
    "missing": lambda path: path.unlink(),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "empty": lambda path: path.write_bytes(b""),
    "header too long": lambda path: path.write_bytes(struct.pack("<Q", 2**60) + b"{}"),
    "another shape": lambda path: reshape(path),
    "a tensor less": lambda path: drop(path),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


def reshape(path: Path) -> None:
    tensors = load_file(path)
    name = min(tensors)
    tensors[name] = tensors[name].reshape(1, *tensors[name].shape)
    save_file(tensors, path, metadata={"format": "pt"})


def drop(path: Path) -> None:
    tensors = load_file(path)
    del tensors[min(tensors)]
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("how", SHARD_DAMAGE)
def test_a_damaged_shard_of_the_source_is_named(how, copied):
    copy = copied("model in shards")
    shard = sorted(copy.glob("model-*.safetensors"))[1]
    SHARD_DAMAGE[how](shard)
    refused(open_model, copy, says=shard.name)


def test_a_gguf_file_that_promises_2_60_elements(tmp_path):
    path = directories.written_gguf(tmp_path / "a.gguf")
    whole = path.read_bytes()
    # after a key, its kind and its elements' kind
    strings, numbers = (
        whole.index(key) + len(key) + 8 for key in (b"ggml.tokens", b"ggml.token_type")
    )
    for place, says in (
        *((8, "tensors"), (16, "keys"), (24, "a string")),
        *((strings, "strings"), (numbers, "an array")),
    ):
        path.write_bytes(whole[:place] + struct.pack("<Q", 2**60) + whole[place + 8 :])
        refused(open_model, path, says=f"a.gguf is no whole GGUF file: .*({says})")
    path.write_bytes(whole[:40])
    refused(open_model, path, says="a.gguf is no whole GGUF file")
    path.write_bytes(b"")
    refused(open_model, path, says="too short")


BAD_LINES = {
    "nested": (b"[" * 100_000, "is not JSON"),
    "surrogate": (rb'{"text": "a\ud800b"}', "half of a character at 1"),
    "long number": (b"1" * 5000, "is not JSON"),
    "line in a name": (rb'{"a\nb": 1}', r"it has 'a\\nb'"),
    "many fields": (json.dumps({f"f{k}": 1 for k in range(10**4)}).encode(), "it has f0, f1"),
    "not UTF-8": (b'{"text": "\xff"}', "not UTF-8"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_lines_of_a_calibration_file(name, tmp_path):
    line, says = BAD_LINES[name]
    path = tmp_path / "a.jsonl"
    path.write_bytes(line)
    refused(calibrate, path, tiny.tokenizer(True), CalibrationRequest(4, 16), says=says)


@pytest.mark.parametrize(
    "messages, says",
    [
        ([{"content": 1}], "content that is int and holds no text"),
        ([{"role": [], "content": {"a": []}}], "content that is dict and holds no text"),
        ([{"content": "a"}], "the chat template refuses line 1 of"),
        ([{"role": "odd", "content": "a"}], "the chat template refuses line 1 of"),
        ([{"role": [], "content": "a"}], "a role that is no text"),
    ],
)
def test_a_template_that_fails_is_said(messages, says, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": messages}))
    tokenizer = tiny.tokenizer(True)
    tokenizer.chat_template = "{{ messages[0].content.nothing.more }}\n{{ raise_exception('no') }}"
    refused(calibrate, path, tokenizer, CalibrationRequest(4, 16, chat_template=True), says=says)


def test_a_tokenizer_that_its_library_panics_at(copied):
    """A merge shorter than the prefix of its second part, which tokenizers cuts off unseen."""
    copy = copied("checkpoint")
    path = copy / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["continuing_subword_prefix"] = "x" * 12
    path.write_text(json.dumps(tokenizer))
    refused(load_tokenizer, copy, says="no tokenizer that can be read: a library failed")
    where = {"pretrained_model_name_or_path": str(copy), "trust_remote_code": False}
    assert open_tokenizer(where) is None

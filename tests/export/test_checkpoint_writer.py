"""OUT appears whole or not at all, and the same calls give the same bytes."""

import errno
import json
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest
import torch

import nearplane as npl
from nearplane import NearplaneError
from nearplane.export import checkpoint_format as fmt
from nearplane.export import (
    checkpoint_reader,
    checksums,
    companion_files,
    output_directory,
    shard_file,
)
from nearplane.export.checkpoint_writer import CheckpointWriter
from tests.export import tiny

EMPTY = {"quantization_config": fmt.quantization_config({}, [])}


def contents(directory: Path) -> dict[str, bytes]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def write_small(out: Path) -> None:
    """Write a checkpoint of three shards and no compressed layer."""
    with CheckpointWriter(out, max_shard_bytes=100) as writer:
        for number in range(3):
            writer.add(f"t{number}", torch.full((20,), float(number)))
        writer.finish(EMPTY, {"report.json": {"a": 1}, "deep/b.txt": b"b"})


def test_same_calls_give_the_same_bytes(written, tmp_path):
    tiny.write(tiny.llama(), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(written("llama").path)


def test_order_of_files_and_layers_in_dictionaries_does_not_matter(tmp_path):
    for name, files in (("a", {"x": b"1", "y": b"2"}), ("b", {"y": b"2", "x": b"1"})):
        with CheckpointWriter(tmp_path / name) as writer:
            writer.finish(EMPTY, files)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_files_of_a_checkpoint(tmp_path):
    write_small(tmp_path / "out")
    shards = {f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
    others = {fmt.INDEX, "config.json", "SHA256SUMS", "report.json", "deep/b.txt"}
    assert contents(tmp_path / "out").keys() == shards | others
    index = json.loads((tmp_path / "out" / fmt.INDEX).read_text())
    assert index["metadata"] == {"total_size": 3 * 80}
    assert index["weight_map"]["t2"] == "model-00003-of-00003.safetensors"
    assert not list(tmp_path.glob(".*"))
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert len(modes) == 1


def test_views_are_stored_without_what_they_are_views_of(tmp_path):
    whole = torch.arange(1000.0).reshape(10, 100)
    with CheckpointWriter(tmp_path / "out") as writer:
        writer.add("row", whole[3])
        writer.add("transposed", whole.T)
        writer.finish(EMPTY, {})
    stored = checkpoint_reader.open_checkpoint(tmp_path / "out")
    assert torch.equal(stored.tensor("row"), whole[3])
    assert torch.equal(stored.tensor("transposed"), whole.T)


def test_copied_files_are_those_of_tokenizer_and_licence(tmp_path):
    for name in ("tokenizer.json", "LICENSE", "merges.txt", "config.json", "a.safetensors"):
        (tmp_path / name).write_text(name)
    files = companion_files.companion_files(tmp_path)
    assert list(files) == ["LICENSE", "merges.txt", "tokenizer.json"]
    with CheckpointWriter(tmp_path / "out") as writer:
        writer.finish(EMPTY, files)
    assert (tmp_path / "out" / "merges.txt").read_text() == "merges.txt"


def test_output_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "kept").touch()
    with pytest.raises(NearplaneError, match="is not empty"):
        CheckpointWriter(tmp_path)
    with pytest.raises(NearplaneError, match="is a file"):
        CheckpointWriter(tmp_path / "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_output_that_is_empty_or_new_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    write_small(tmp_path / "empty")
    write_small(tmp_path / "several" / "folders" / "new")
    assert checksums.verify_sums(tmp_path / "several" / "folders" / "new") == []


def test_output_that_filled_up_meanwhile_is_kept(tmp_path):
    with pytest.raises(NearplaneError, match="cannot put the checkpoint"):
        with CheckpointWriter(tmp_path / "out") as writer:
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").touch()
            writer.finish(EMPTY, {})
    assert contents(tmp_path) == {"out/theirs": b""}


def test_parent_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NearplaneError, match="cannot write in"):
        CheckpointWriter(tmp_path / "file" / "out")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_any_exception_leaves_nothing(error, tmp_path):
    with pytest.raises(error):
        with CheckpointWriter(tmp_path / "out", max_shard_bytes=100) as writer:
            writer.add("a", torch.zeros(50))
            writer.add("b", torch.zeros(50))
            raise error
    assert list(tmp_path.iterdir()) == []


def test_leaving_without_finish_leaves_nothing(tmp_path):
    with CheckpointWriter(tmp_path / "out") as writer:
        writer.add("a", torch.zeros(50))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../up", "/root", "a/../b", ".hidden", "a\\b", "a\nb", "SHA256SUMS", "config.json", ""]
)
def test_file_names_that_do_not_belong(name, tmp_path):
    with pytest.raises(NearplaneError, match="cannot have another file|not copied"):
        with CheckpointWriter(tmp_path / "out") as writer:
            writer.finish(EMPTY, {name: b"x"})
    assert list(tmp_path.iterdir()) == []


def test_records_and_configuration_must_agree(tmp_path):
    weight = torch.randn(8, 16)
    packed = tiny.pack_layer("a", weight, seed=0)
    config = {"quantization_config": fmt.quantization_config({}, [packed.report])}
    for records in ({}, {"a.record": packed.record[:-1]}, {"b.record": packed.record}):
        with pytest.raises(NearplaneError, match="the configuration promises"):
            with CheckpointWriter(tmp_path / "out") as writer:
                for name, record in records.items():
                    writer.add(name, record)
                writer.finish(config, {})


def test_a_tensor_is_written_once(tmp_path):
    with pytest.raises(NearplaneError, match="already written"):
        with CheckpointWriter(tmp_path / "out") as writer:
            writer.add("a", torch.zeros(1))
            writer.add("a", torch.zeros(1))


def test_numbers_that_json_cannot_write(tmp_path):
    entry = fmt.layer_entry(tiny.report("a", torch.ones(2, 2), torch.ones(2, 2), 9))
    assert entry["bytes"] == 9 and entry["loss"] == 0 and "seconds" not in entry
    assert fmt.rounded({"a": [float("nan"), 1 / 3, 7]}) == {"a": [None, 0.3333333, 7]}
    with pytest.raises(NearplaneError, match="cannot be written as JSON"):
        fmt.json_bytes({"a": float("nan")})


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("owner, name", [(shard_file, "write_all"), (shutil, "copyfile")])
def test_full_disk(owner, name, tmp_path, monkeypatch):
    monkeypatch.setattr(owner, name, full_disk)
    with pytest.raises(NearplaneError, match="is full: .* GB are free"):
        with CheckpointWriter(tmp_path / "out") as writer:
            writer.add("a", torch.zeros(50))
            writer.finish(EMPTY, {"copy.txt": Path(__file__)})
    assert list(tmp_path.iterdir()) == []


def test_full_disk_as_safetensors_reports_it(tmp_path):
    with pytest.raises(NearplaneError, match="is full"):
        with output_directory.explaining_full_disk(tmp_path, 10**9):
            raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_space_is_checked_before_the_start(tmp_path):
    output_directory.check_space(tmp_path / "new" / "out", 10)
    with pytest.raises(NearplaneError, match="needs .* GB, but .* GB free"):
        output_directory.check_space(tmp_path / "new" / "out", 10**18)


def killed_at(sync_number: int, out: Path) -> bool:
    """Write in a process that dies by SIGKILL at its n-th fsync; return whether it lived to end."""
    child = os.fork()
    if child == 0:
        counted, real = [0], output_directory.sync

        def sync(path):
            counted[0] += 1
            if counted[0] == sync_number:
                os.kill(os.getpid(), signal.SIGKILL)
            real(path)

        output_directory.sync = sync
        write_small(out)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def test_sigkill_at_every_moment_leaves_nothing_that_loads(tmp_path):
    out, number, reached_config = tmp_path / "out", 1, False
    while not killed_at(number, out):
        number += 1
        left = list(tmp_path.glob(".out.partial-*"))
        # those of earlier, dead writers are gone
        assert len(left) == 1 or out.exists()
        for directory in left:
            with pytest.raises(NearplaneError, match="interrupted run"):
                npl.load(directory)
            if (directory / "config.json").exists():
                reached_config = True
                assert checksums.verify_sums(directory) == []
        if out.exists():
            assert checksums.verify_sums(out) == []
            shutil.rmtree(out)
    assert number > 10 and reached_config
    assert not list(tmp_path.glob(".out.partial-*"))


def test_only_partial_directories_of_dead_processes_are_removed(tmp_path):
    host = socket.gethostname()
    dead = tmp_path / f".out.partial-{host}-4194304-ab"  # above Linux's largest process id
    kept = {
        f".out.partial-{host}-{os.getpid()}-ab",
        f".other.partial-{host}-4194304-ab",
        f".out.partial-{host}-x-ab",
    }
    for path in [dead, *(tmp_path / name for name in kept)]:
        path.mkdir()
    write_small(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == kept | {"out"}

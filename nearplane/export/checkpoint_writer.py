"""Write a checkpoint directory tensor by tensor, so that the model need not fit in memory."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from nearplane.export import checkpoint_format as fmt
from nearplane.export import checksums, output_directory
from nearplane.export.shard_file import ShardWriter
from nearplane.types import NearplaneError

SHARD_BYTES = 1_000_000_000

FileContent = bytes | Path | dict[str, Any]


class CheckpointWriter:
    """A context manager that writes a checkpoint; OUT appears complete at the end or not at all.

        with CheckpointWriter("out") as writer:
            writer.add("lm_head.weight", weight)
            writer.finish(config, {"report.json": report, "tokenizer.json": path})

    The same calls give the same bytes. When `add` returns, its tensor is on disk and may be freed.
    Leaving the block before `finish`, with or without an error, removes everything written.

    - `max_shard_bytes`: bytes of tensors after which a new safetensors shard begins.
    """

    def __init__(self, out: str | Path, max_shard_bytes: int = SHARD_BYTES):
        self.target = output_directory.resolved_output(out)
        self.max_shard_bytes = max_shard_bytes
        self.directory, self.lock = output_directory.create(self.target)
        self.shard: ShardWriter | None = None
        self.shard_of: dict[str, int] = {}
        self.record_bytes: dict[str, int] = {}
        self.shard_count = 0
        self.total_bytes = 0
        self.finished = False

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.shard is not None:
            self.shard.remove()
        if not self.finished:
            shutil.rmtree(self.directory, ignore_errors=True)
        self.lock.release()

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor; `name` is its name in the state dict, and may be used once."""
        if name in self.shard_of:
            raise NearplaneError(f"the tensor {name!r} was already written")
        if self.shard is not None and self.shard.nbytes + tensor.nbytes > self.max_shard_bytes:
            self._close_shard()
        shard = self.shard or self._open_shard()
        shard.add(name, tensor)
        self.shard_of[name] = self.shard_count
        self.total_bytes += tensor.nbytes
        if name.endswith(fmt.RECORD):
            self.record_bytes[name.removesuffix(fmt.RECORD)] = tensor.nbytes

    def finish(
        self,
        config: dict[str, Any],
        files: dict[str, FileContent],
        check: Callable[[Path], None] = lambda directory: None,
    ) -> Path:
        """Write the remaining files, config.json last, rename the directory to OUT and return OUT.

        - `config`: the model's configuration with its `quantization_config`.
        - `files`: name -> bytes, a dictionary for JSON, or the path of a file to copy.
        - `check`: called with the complete directory before it is renamed.
        """
        self._check_layers(config)
        config_bytes = fmt.json_bytes(config)
        if not self.shard_count:
            self._open_shard()
        self._close_shard()
        self._name_shards()
        for name in sorted(files):
            self._write(name, files[name])
        self._write_sums(config_bytes)
        self._write(fmt.CONFIG, config_bytes)
        check(self.directory)
        output_directory.rename_into_place(self.directory, self.target)
        self.finished = True
        self.lock.release()
        return self.target

    def _open_shard(self) -> ShardWriter:
        self.shard_count += 1
        with output_directory.explaining_full_disk(self.directory, 0):
            self.shard = ShardWriter(self.directory / _temporary_name(self.shard_count))
        return self.shard

    def _close_shard(self) -> None:
        if self.shard is not None:
            self.shard.close(fmt.METADATA)
        self.shard = None

    def _name_shards(self) -> None:
        # a shard's final name contains the number of shards, which is known only now
        for number in range(1, self.shard_count + 1):
            final = fmt.shard_name(number, self.shard_count)
            (self.directory / _temporary_name(number)).rename(self.directory / final)
        if self.shard_count > 1:
            self._write(fmt.INDEX, self._index())

    def _index(self) -> dict[str, Any]:
        count = self.shard_count
        weight_map = {n: fmt.shard_name(number, count) for n, number in self.shard_of.items()}
        return {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}

    def _write(self, name: str, content: FileContent) -> None:
        path = self.directory / name
        if not fmt.is_safe_path(name) or name == checksums.SUMS or path.exists():
            raise NearplaneError(f"a checkpoint cannot have another file named {name!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            content = fmt.json_bytes(content)
        self._write_path(path, content)

    def _write_path(self, path: Path, content: bytes | Path) -> None:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        with output_directory.explaining_full_disk(self.directory, size):
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                shutil.copyfile(content, path)
            output_directory.sync(path)
            output_directory.sync(path.parent)

    def _write_sums(self, config_bytes: bytes) -> None:
        # config.json, which makes the directory a checkpoint, comes last: its bytes are hashed here
        config_path = self.directory / fmt.CONFIG
        if config_path.exists():
            raise NearplaneError(f"{fmt.CONFIG} is made of the configuration, not copied")
        names = checksums.listed_files(self.directory)
        hashes = {name: checksums.file_hash(self.directory / name) for name in names}
        hashes[fmt.CONFIG] = checksums.bytes_hash(config_bytes)
        self._write_path(self.directory / checksums.SUMS, checksums.sums_text(hashes))

    def _check_layers(self, config: dict[str, Any]) -> None:
        """Raise NearplaneError unless config.json lists exactly the records that were added."""
        quantization = config.get("quantization_config")
        layers = fmt.check_quantization_config(quantization, "the new config.json")
        promised = {name: entry["bytes"] for name, entry in layers.items()}
        for name in sorted(promised.keys() | self.record_bytes.keys()):
            added, expected = self.record_bytes.get(name), promised.get(name)
            if added != expected:
                raise NearplaneError(
                    f"{name}: the configuration promises {expected} bytes of record, "
                    f"{added} were added"
                )


class Unwritten:
    """Takes the place of `CheckpointWriter` in all processes but the first, and writes nothing."""

    target = Path("out")

    def add(self, name: str, tensor: Tensor) -> None:
        pass

    def finish(self, *_: Any) -> None:
        pass


def _temporary_name(number: int) -> str:
    return f"model-{number:05d}.safetensors"

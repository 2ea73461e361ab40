"""Tensors one by one -> a checkpoint directory, so that no whole model need be in memory."""

import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from nearplane.export import checkpoint_format as fmt
from nearplane.export import checksums, output_directory
from nearplane.export.shard_file import Shard
from nearplane.types import NearplaneError

SHARD_BYTES = 1_000_000_000

FileContent = bytes | Path | dict[str, Any]


class CheckpointWriter:
    """A context manager: `add` tensors, then `finish`; OUT appears at the end or not at all.

        with CheckpointWriter("out") as writer:
            writer.add("lm_head.weight", weight)
            writer.finish(config, {"report.json": report, "tokenizer.json": path})

    The same calls give the same bytes. A tensor is on disk when `add` returns, and in no memory.
    Leaving the block without `finish`, by an error or not, removes everything written.
    """

    def __init__(self, out: str | Path, max_shard_bytes: int = SHARD_BYTES):
        self.target = output_directory.resolved_output(out)
        self.max_shard_bytes = max_shard_bytes
        self.directory, self.lock = output_directory.create(self.target)
        self.shard: Shard | None = None
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
        """Take one tensor under the name that the model gives it."""
        if name in self.shard_of:
            raise NearplaneError(f"the tensor {name!r} was already written")
        if self.shard is not None and self.shard.nbytes + tensor.nbytes > self.max_shard_bytes:
            self._close_shard()
        if self.shard is None:
            self._open_shard()
        self.shard.add(name, tensor)
        self.shard_of[name] = self.shard_count
        self.total_bytes += tensor.nbytes
        if name.endswith(fmt.RECORD):
            self.record_bytes[name.removesuffix(fmt.RECORD)] = tensor.nbytes

    def finish(self, config: dict[str, Any], files: dict[str, FileContent]) -> Path:
        """Write the remaining files, config.json last, and let OUT appear; return OUT.

        - `config`: the model's configuration with its `quantization_config`.
        - `files`: name -> bytes, a dictionary for JSON, or the path of a file to copy.
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
        output_directory.appear(self.directory, self.target)
        self.finished = True
        self.lock.release()
        return self.target

    def _open_shard(self) -> None:
        self.shard_count += 1
        with output_directory.explaining_full_disk(self.directory, 0):
            self.shard = Shard(self.directory / _unnumbered(self.shard_count))

    def _close_shard(self) -> None:
        if self.shard is not None:
            self.shard.close(fmt.METADATA)
        self.shard = None

    def _name_shards(self) -> None:
        # how many shards there are is known only now
        for number in range(1, self.shard_count + 1):
            final = fmt.shard_name(number, self.shard_count)
            (self.directory / _unnumbered(number)).rename(self.directory / final)
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
        # config.json, which makes the directory a checkpoint, is hashed before it exists
        config_path = self.directory / fmt.CONFIG
        if config_path.exists():
            raise NearplaneError(f"{fmt.CONFIG} is made of the configuration, not copied")
        names = checksums.listed_files(self.directory)
        hashes = {name: checksums.file_hash(self.directory / name) for name in names}
        hashes[fmt.CONFIG] = checksums.bytes_hash(config_bytes)
        self._write_path(self.directory / checksums.SUMS, checksums.sums_text(hashes))

    def _check_layers(self, config: dict[str, Any]) -> None:
        quantization = config.get("quantization_config")
        layers = fmt.check_quantization_config(quantization, "the new config.json")
        promised = {name: entry["bytes"] for name, entry in layers.items()}
        for name in sorted(promised.keys() | self.record_bytes.keys()):
            there, said = self.record_bytes.get(name), promised.get(name)
            if there != said:
                raise NearplaneError(
                    f"{name}: the configuration promises {said} bytes of record, {there} were added"
                )


def _unnumbered(number: int) -> str:
    return f"model-{number:05d}.safetensors"

"""Tensors one by one -> a checkpoint directory, so that no whole model need be in memory."""

import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from nearplane.export import layout, partial, sums
from nearplane.export.shard import Shard
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
        self.target = partial.resolved_output(out)
        self.max_shard_bytes = max_shard_bytes
        self.directory, self.lock = partial.create(self.target)
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
        if name.endswith(layout.RECORD):
            self.record_bytes[name.removesuffix(layout.RECORD)] = tensor.nbytes

    def finish(self, config: dict[str, Any], files: dict[str, FileContent]) -> Path:
        """Write the remaining files, config.json last, and let OUT appear; return OUT.

        - `config`: the model's configuration with its `quantization_config`.
        - `files`: name -> bytes, a dictionary for JSON, or the path of a file to copy.
        """
        self._check_layers(config)
        config_bytes = layout.json_bytes(config)
        if not self.shard_count:
            self._open_shard()
        self._close_shard()
        self._name_shards()
        for name in sorted(files):
            self._write(name, files[name])
        self._write_sums(config_bytes)
        self._write(layout.CONFIG, config_bytes)
        partial.appear(self.directory, self.target)
        self.finished = True
        self.lock.release()
        return self.target

    def _open_shard(self) -> None:
        self.shard_count += 1
        with partial.explaining_full_disk(self.directory, 0):
            self.shard = Shard(self.directory / _unnumbered(self.shard_count))

    def _close_shard(self) -> None:
        if self.shard is not None:
            self.shard.close(layout.METADATA)
        self.shard = None

    def _name_shards(self) -> None:
        # how many shards there are is known only now
        for number in range(1, self.shard_count + 1):
            final = layout.shard_name(number, self.shard_count)
            (self.directory / _unnumbered(number)).rename(self.directory / final)
        if self.shard_count > 1:
            self._write(layout.INDEX, self._index())

    def _index(self) -> dict[str, Any]:
        count = self.shard_count
        weight_map = {n: layout.shard_name(number, count) for n, number in self.shard_of.items()}
        return {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}

    def _write(self, name: str, content: FileContent) -> None:
        path = self.directory / name
        if not layout.is_safe_path(name) or name == sums.SUMS or path.exists():
            raise NearplaneError(f"a checkpoint cannot have another file named {name!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            content = layout.json_bytes(content)
        self._write_path(path, content)

    def _write_path(self, path: Path, content: bytes | Path) -> None:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        with partial.explaining_full_disk(self.directory, size):
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                shutil.copyfile(content, path)
            partial.sync(path)
            partial.sync(path.parent)

    def _write_sums(self, config_bytes: bytes) -> None:
        # config.json, which makes the directory a checkpoint, is hashed before it exists
        config_path = self.directory / layout.CONFIG
        if config_path.exists():
            raise NearplaneError(f"{layout.CONFIG} is made of the configuration, not copied")
        names = sums.listed_files(self.directory)
        hashes = {name: sums.file_hash(self.directory / name) for name in names}
        hashes[layout.CONFIG] = sums.bytes_hash(config_bytes)
        self._write_path(self.directory / sums.SUMS, sums.sums_text(hashes))

    def _check_layers(self, config: dict[str, Any]) -> None:
        quantization = config.get("quantization_config")
        layers = layout.check_quantization_config(quantization, "the new config.json")
        promised = {name: entry["bytes"] for name, entry in layers.items()}
        for name in sorted(promised.keys() | self.record_bytes.keys()):
            there, said = self.record_bytes.get(name), promised.get(name)
            if there != said:
                raise NearplaneError(
                    f"{name}: the configuration promises {said} bytes of record, {there} were added"
                )


def _unnumbered(number: int) -> str:
    return f"model-{number:05d}.safetensors"

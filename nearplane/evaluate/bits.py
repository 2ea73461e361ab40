"""Where the bytes of a checkpoint are: from its files, not from what it says of itself."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nearplane.export import checkpoint_format as fmt
from nearplane.export.checkpoint_reader import Checkpoint, open_checkpoint
from nearplane.export.record_check import checked_header
from nearplane.types import NearplaneError


@dataclass(frozen=True)
class LayerBits:
    """The stored bytes of one compressed layer."""

    name: str
    rows: int
    columns: int
    record_bytes: int
    code_bytes: int
    step_bytes: int
    outlier_bytes: int

    @property
    def weights(self) -> int:
        return self.rows * self.columns

    @property
    def bpw(self) -> float:
        """Bits per weight of the whole record."""
        return 8 * self.record_bytes / self.weights

    @property
    def code_bpw(self) -> float:
        """Bits per weight of the codes alone."""
        return 8 * self.code_bytes / self.weights


@dataclass(frozen=True)
class ByteAccount:
    """The bytes of a checkpoint's directory.

    - `kept`: what tensors stay as they were: name with numbers as * -> (numbers, bytes).
    - `weight_files`: bytes of the safetensors files, their headers included.
    - `all_files`: bytes of everything in the directory.
    """

    layers: list[LayerBits]
    kept: dict[str, tuple[int, int]]
    weight_files: int
    all_files: int

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)

    @property
    def numbers(self) -> int:
        """Weights and all numbers beside them."""
        return self.weights + sum(count for count, _ in self.kept.values())

    @property
    def bpw(self) -> float:
        """Bits per quantized weight, all that their records store."""
        return 8 * sum(layer.record_bytes for layer in self.layers) / max(self.weights, 1)

    @property
    def bpw_of_files(self) -> float:
        """Bits per number of the model, of the safetensors files with their headers."""
        return 8 * self.weight_files / max(self.numbers, 1)

    def sentence(self) -> str:
        """Return the totals in one line."""
        kept_bytes = sum(size for _, size in self.kept.values())
        return (
            f"{self.bpw:.4f} bits per weight of {self.weights:,} quantized weights; "
            f"{self.bpw_of_files:.4f} bits per number of the whole model "
            f"({self.weight_files / 1e6:.1f} MB, {kept_bytes / 1e6:.1f} MB of them as they were)"
        )

    def for_json(self) -> dict[str, Any]:
        totals = {"weights": self.weights, "bpw": self.bpw, "bpw_of_files": self.bpw_of_files}
        kept = {name: {"numbers": n, "bytes": size} for name, (n, size) in self.kept.items()}
        return asdict(self) | {"kept": kept} | totals


def account(directory: Path) -> ByteAccount:
    """Return where the bytes of a checkpoint are; headers of records are read, codes are not."""
    checkpoint = open_checkpoint(directory)
    shards = {directory / file for file in checkpoint.file_of.values()}
    return ByteAccount(
        layers=[layer_bits(checkpoint, name) for name in checkpoint.layers],
        kept=kept_tensors(checkpoint),
        weight_files=sum(shard.stat().st_size for shard in shards),
        all_files=sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()),
    )


def is_checkpoint(name: str | Path) -> bool:
    """Whether `name` is the directory of a nearplane checkpoint."""
    if not Path(name).is_dir():
        return False
    try:
        open_checkpoint(name)
    except NearplaneError:
        return False
    return True


def layer_bits(checkpoint: Checkpoint, name: str) -> LayerBits:
    """Return the bytes of one layer from its record's header."""
    record = checkpoint.tensor(name + fmt.RECORD)
    header = checked_header(record, checkpoint.layers[name], f"{checkpoint.directory}: {name}")
    return LayerBits(
        name=name,
        rows=header.rows,
        columns=header.columns,
        record_bytes=len(record),
        code_bytes=header.code_bytes,
        step_bytes=header.step_bytes,
        outlier_bytes=header.outlier_bytes,
    )


def kept_tensors(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Return the tensors that are no records, those of all blocks together, the largest first."""
    sums: dict[str, tuple[int, int]] = {}
    for name in checkpoint.file_of:
        if not name.endswith(fmt.RECORD):
            tensor = checkpoint.tensor(name)
            kind = re.sub(r"\b\d+\b", "*", name)
            numbers, size = sums.get(kind, (0, 0))
            sums[kind] = numbers + tensor.numel(), size + tensor.nbytes
    return dict(sorted(sums.items(), key=lambda item: -item[1][1]))

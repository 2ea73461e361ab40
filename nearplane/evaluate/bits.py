"""Count what the bytes of a checkpoint are used for, from its files and not from its report."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nearplane.export import checkpoint_format as fmt
from nearplane.export.checkpoint_reader import Checkpoint, open_checkpoint
from nearplane.export.record_check import checked_header
from nearplane.report.report_json import Kept
from nearplane.types import NearplaneError


@dataclass(frozen=True)
class LayerBits:
    """The stored bytes of one compressed layer.

    - `record_bytes`: all of them, with header and checksum.
    - `code_bytes`, `step_bytes`, `outlier_bytes`: those of the integer codes, of the steps (scales)
      and of the outliers.
    """

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
class ByteCounts:
    """The bytes of a checkpoint's directory.

    - `uncompressed`: name of the tensors that are not compressed, with block numbers as "*" ->
      (numbers, bytes).
    - `weight_files`: bytes of the safetensors files, their headers included.
    - `all_files`: bytes of everything in the directory.
    """

    layers: list[LayerBits]
    uncompressed: dict[str, tuple[int, int]]
    weight_files: int
    all_files: int

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)

    @property
    def numbers(self) -> int:
        """Quantized weights and the numbers of all uncompressed tensors."""
        return self.weights + sum(count for count, _ in self.uncompressed.values())

    @property
    def bpw(self) -> float:
        """Bits per quantized weight, of the whole records."""
        return 8 * sum(layer.record_bytes for layer in self.layers) / max(self.weights, 1)

    @property
    def bpw_of_files(self) -> float:
        """Bits per number of the whole model, of the safetensors files with their headers."""
        return 8 * self.weight_files / max(self.numbers, 1)

    def sentence(self) -> str:
        """Return the totals in one line."""
        megabytes = sum(size for _, size in self.uncompressed.values()) / 1e6
        return (
            f"{self.bpw:.4f} bits per weight of {self.weights:,} quantized weights; "
            f"{self.bpw_of_files:.4f} bits per number of the whole model "
            f"({self.weight_files / 1e6:.1f} MB, {megabytes:.1f} MB of them as they were)"
        )

    def for_json(self) -> dict[str, Any]:
        """Return what `nearplane inspect --json` prints as "bits"."""
        uncompressed = {
            name: {"numbers": count, "bytes": size}
            for name, (count, size) in self.uncompressed.items()
        }
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "kept": uncompressed,
            "weight_files": self.weight_files,
            "all_files": self.all_files,
            "weights": self.weights,
            "bpw": self.bpw,
            "bpw_of_files": self.bpw_of_files,
        }


def count_bytes(directory: Path) -> ByteCounts:
    """Return what the bytes of a checkpoint are used for; no record is decoded."""
    checkpoint = open_checkpoint(directory)
    shards = {directory / file for file in checkpoint.file_of.values()}
    return ByteCounts(
        layers=[layer_bits(checkpoint, name) for name in checkpoint.layers],
        uncompressed=uncompressed_sizes(checkpoint),
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
    """Return the byte counts of one layer, from the header of its record."""
    record = checkpoint.tensor(name + fmt.RECORD)
    header = checked_header(record, checkpoint.layers[name], f"{checkpoint.directory}: {name}")
    return LayerBits(
        name=name,
        rows=header.rows,
        columns=header.columns,
        record_bytes=len(record),
        code_bytes=header.code_bytes,
        step_bytes=header.step_bytes + header.row_step_bytes,
        outlier_bytes=header.outlier_bytes,
    )


def uncompressed_sizes(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Return name -> (numbers, bytes) of the uncompressed tensors, the largest first.

    Tensors whose names differ in numbers only, such as those of all blocks, are added up.
    """
    kept = Kept()
    for name in checkpoint.file_of:
        if not name.endswith(fmt.RECORD):
            tensor = checkpoint.tensor(name)
            kept.add(name, tensor.numel(), tensor.nbytes)
    return kept.largest_first()
